//! What is always so of conversions; [`sample`] makes the values, `refusals` and `numbers` hold the single cases.

mod numbers; // bytes written by hand
mod presence; // absent, empty and always written
mod refusals; // absurd values and the field they are in
mod sample; // random values of types

use super::{FromWire, ToWire};
use proptest::prelude::*;
use prost::Message;
use sample::{Sample, Source};
use skep_types::{Cluster, Config, Network, Node, Object, Secret, Service, ServiceSpec, Task};
use std::fmt::Debug;

fn comes_back<T>(source: &mut Source)
where
    T: Sample + FromWire + ToWire<Wire = <T as FromWire>::Wire> + PartialEq + Debug,
    <T as FromWire>::Wire: Message + Default + PartialEq,
{
    let value = T::sample(source);
    let wire = value.to_wire();
    let read = <T as FromWire>::Wire::decode(wire.encode_to_vec().as_slice()).expect("what was encoded decodes");
    assert!(read == wire, "the bytes say something else than the message");
    assert_eq!(T::from_wire(read).expect("what types hold is accepted"), value);
}

/// Bytes that were sound before somebody wrote into them: most still decode, to anything.
fn never_panics<T>(source: &mut Source, damage: &[(usize, u8)]) -> bool
where
    T: Sample + FromWire + ToWire<Wire = <T as FromWire>::Wire> + PartialEq + Debug,
    <T as FromWire>::Wire: Message + Default,
{
    let mut bytes = T::sample(source).to_wire().encode_to_vec();
    let length = bytes.len().max(1);
    for (place, damaged) in damage {
        bytes.get_mut(place % length).into_iter().for_each(|byte| *byte = *damaged);
    }
    let Ok(wire) = <T as FromWire>::Wire::decode(bytes.as_slice()) else { return false };
    let Ok(value) = T::from_wire(wire) else { return false };
    assert_eq!(T::from_wire(value.to_wire()).expect("what was accepted once is accepted again"), value);
    true
}

#[test]
fn a_value_with_every_part_filled_comes_back() {
    for seed in 0..64 {
        let source = &mut Source::new(seed, 100);
        comes_back::<Service>(source);
        comes_back::<Task>(source);
        comes_back::<Node>(source);
        comes_back::<Network>(source);
        comes_back::<Cluster>(source);
        comes_back::<Secret>(source);
        comes_back::<Config>(source);
    }
}

proptest! {
    #[test]
    fn services_come_back_from_the_wire(seed: u64, fill in 0..=100u64) {
        comes_back::<Service>(&mut Source::new(seed, fill));
    }

    #[test]
    fn tasks_come_back_from_the_wire(seed: u64, fill in 0..=100u64) {
        comes_back::<Task>(&mut Source::new(seed, fill));
    }

    #[test]
    fn nodes_come_back_from_the_wire(seed: u64, fill in 0..=100u64) {
        comes_back::<Node>(&mut Source::new(seed, fill));
    }

    #[test]
    fn networks_come_back_from_the_wire(seed: u64, fill in 0..=100u64) {
        comes_back::<Network>(&mut Source::new(seed, fill));
    }

    #[test]
    fn clusters_come_back_from_the_wire(seed: u64, fill in 0..=100u64) {
        comes_back::<Cluster>(&mut Source::new(seed, fill));
    }

    #[test]
    fn secrets_and_configs_come_back_from_the_wire(seed: u64, fill in 0..=100u64) {
        comes_back::<Secret>(&mut Source::new(seed, fill));
        comes_back::<Config>(&mut Source::new(seed, fill));
    }

    #[test]
    fn objects_of_any_kind_come_back_from_the_wire(seed: u64, fill in 0..=60u64) {
        comes_back::<Object>(&mut Source::new(seed, fill));
    }

    #[test]
    fn damaged_bytes_never_panic(seed: u64, fill in 0..=100u64, damage in prop::collection::vec(any::<(usize, u8)>(), 1..4)) {
        let source = &mut Source::new(seed, fill);
        never_panics::<ServiceSpec>(source, &damage);
        never_panics::<Task>(source, &damage);
        never_panics::<Node>(source, &damage);
        never_panics::<Cluster>(source, &damage);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(wire) = crate::v1::ServiceSpec::decode(bytes.as_slice()) {
            let _ = ServiceSpec::from_wire(wire);
        }
        if let Ok(wire) = crate::v1::Task::decode(bytes.as_slice()) {
            let _ = Task::from_wire(wire);
        }
    }
}

#[test]
fn damage_leaves_enough_that_is_accepted() {
    let accepted = (0..200).filter(|seed| never_panics::<ServiceSpec>(&mut Source::new(*seed, 80), &[(*seed as usize * 31, *seed as u8)]));
    assert!(accepted.count() > 20, "the test of damaged bytes would prove nothing");
}
