//! Which port of a range a container gets. Pure.

use crate::error::NetworkError;
use skep_types::PortConfig;
use std::collections::BTreeMap;

/// What was found taken, by number and protocol, with who has it.
#[derive(Debug, Default)]
pub struct Taken(BTreeMap<(u32, &'static str), String>);

impl Taken {
    /// Notes why a container could not have its ports. `false`: it was not one that it has a choice for, or it was known.
    pub fn note(&mut self, error: &NetworkError, wish: &[PortConfig], ranges: &BTreeMap<usize, u32>) -> bool {
        let NetworkError::PortTaken { port, protocol, holder } = error else { return false };
        let is_of = |(index, last): (&usize, &u32)| {
            wish.get(*index).is_some_and(|config| config.protocol.name() == *protocol && (config.published_port..=*last).contains(port))
        };
        ranges.iter().any(is_of) && self.0.insert((*port, protocol), holder.clone()).is_none()
    }
}

/// The ports with the first free number of its range for each that has one, and the others as they are.
///
/// # Errors
/// If all of a range are taken: by what was noted, or by this container's other ports.
pub fn choose(wish: &[PortConfig], ranges: &BTreeMap<usize, u32>, taken: &Taken) -> Result<Vec<PortConfig>, NetworkError> {
    // Those without a choice go first.
    let mut chosen: Vec<PortConfig> =
        wish.iter().enumerate().filter(|(index, _)| !ranges.contains_key(index)).map(|(_, config)| config.clone()).collect();
    let mut all = wish.to_vec();
    for (index, last) in ranges {
        let Some(config) = all.get_mut(*index) else { continue };
        let (first, protocol) = (config.published_port, config.protocol.name());
        let free = (first..=*last).map(|number| PortConfig { published_port: number, ..config.clone() }).find(|candidate| {
            !taken.0.contains_key(&(candidate.published_port, protocol)) && !chosen.iter().any(|other| other.meets(candidate))
        });
        let Some(free) = free else {
            let holder = taken.0.range((first, "")..=(*last, protocol)).rev().find(|((_, kind), _)| *kind == protocol);
            let holder = holder.map_or_else(|| "other ports of this container".to_owned(), |(_, holder)| holder.clone());
            return Err(NetworkError::RangeTaken { first, last: *last, protocol, holder });
        };
        chosen.push(free.clone());
        *config = free;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::Protocol;

    fn port(published: u32, target: u32, protocol: Protocol) -> PortConfig {
        PortConfig { published_port: published, target_port: target, protocol, ..PortConfig::default() }
    }

    fn taken(port: u32, protocol: &'static str) -> NetworkError {
        NetworkError::PortTaken { port, protocol, holder: "task web.1".into() }
    }

    #[test]
    fn the_first_free_number_of_each_range_is_chosen() {
        let wish =
            [port(8000, 80, Protocol::Tcp), port(8000, 81, Protocol::Tcp), port(8000, 80, Protocol::Udp), port(8001, 82, Protocol::Tcp)];
        let ranges = BTreeMap::from([(0, 8010), (1, 8010), (2, 8010)]);
        let mut known = Taken::default();
        let numbers =
            |known: &Taken| -> Vec<u32> { choose(&wish, &ranges, known).unwrap().iter().map(|port| port.published_port).collect() };
        // 8001 is the last one's, who has no choice; UDP counts by itself.
        assert_eq!(numbers(&known), [8000, 8002, 8000, 8001]);
        assert!(known.note(&taken(8000, "tcp"), &wish, &ranges));
        assert!(!known.note(&taken(8000, "tcp"), &wish, &ranges), "it is known already");
        assert_eq!(numbers(&known), [8002, 8003, 8000, 8001]);
        assert!(!known.note(&taken(9000, "tcp"), &wish, &ranges) && !known.note(&taken(8000, "sctp"), &wish, &ranges));
    }

    #[test]
    fn a_range_without_a_free_number_is_named_with_its_cure() {
        let (wish, ranges) = ([port(8000, 80, Protocol::Tcp)], BTreeMap::from([(0, 8001)]));
        let mut known = Taken::default();
        for number in [8000, 8001] {
            assert!(known.note(&taken(number, "tcp"), &wish, &ranges));
        }
        let refused = choose(&wish, &ranges, &known).unwrap_err().to_string();
        assert!(refused.contains("8000-8001/tcp") && refused.contains("task web.1") && refused.contains("another range"), "{refused}");
    }
}
