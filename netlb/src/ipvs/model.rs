//! Services and targets as data, and the difference of two states.

use crate::nft::Family;
use crate::wanted::Protocol;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a service is asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asked {
    /// Packets of that family with that mark, whatever their port.
    Marked { family: Family, mark: u32 },
    /// Packets to that address and port.
    At { protocol: Protocol, address: IpAddr, port: u16 },
}

impl Asked {
    pub(crate) fn family(self) -> Family {
        match self {
            Self::Marked { family, .. } => family,
            Self::At { address, .. } => Family::of(address),
        }
    }
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) address: IpAddr,
    /// 0: the port that was asked for.
    pub(crate) port: u16,
}

/// How a target is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TargetState {
    /// It gets new connections. If not, it keeps those that it has.
    pub(crate) open: bool,
    /// Known when it was read last, of whatever state of TCP.
    pub(crate) connections: u32,
}

/// All that is balanced in a namespace.
pub(crate) type Services = BTreeMap<Asked, BTreeMap<Target, TargetState>>;

/// One step. In the order of [`difference`] no service is without an open target in between that has one before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServiceChange {
    Add(Asked),
    AddTarget { of: Asked, target: Target, open: bool },
    SetTarget { of: Asked, target: Target, open: bool },
    RemoveTarget { of: Asked, target: Target },
    Remove(Asked),
}

/// The steps from what is to what should be: who comes first, then who is open, then who leaves.
pub(crate) fn difference(is: &Services, wanted: &Services) -> Vec<ServiceChange> {
    let none = BTreeMap::new();
    let mut changes: Vec<ServiceChange> =
        wanted.keys().filter(|asked| !is.contains_key(asked)).map(|asked| ServiceChange::Add(*asked)).collect();
    let (mut closing, mut leaving) = (Vec::new(), Vec::new());
    for (of, targets) in wanted {
        let known = is.get(of).unwrap_or(&none);
        for (target, TargetState { open, .. }) in targets {
            let (of, target, open) = (*of, *target, *open);
            match known.get(&target) {
                None => changes.push(ServiceChange::AddTarget { of, target, open }),
                Some(found) if found.open == open => {}
                Some(_) if open => changes.push(ServiceChange::SetTarget { of, target, open }),
                Some(_) => closing.push(ServiceChange::SetTarget { of, target, open }),
            }
        }
        let gone = known.keys().filter(|target| !targets.contains_key(target));
        leaving.extend(gone.map(|target| ServiceChange::RemoveTarget { of: *of, target: *target }));
    }
    // With a service go its targets.
    leaving.extend(is.keys().filter(|asked| !wanted.contains_key(asked)).map(|asked| ServiceChange::Remove(*asked)));
    changes.into_iter().chain(closing).chain(leaving).collect()
}

/// Whether both hold the same, whatever is connected.
pub(crate) fn same(one: &Services, other: &Services) -> bool {
    difference(one, other).is_empty()
}
