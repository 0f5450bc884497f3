//! The resolvers that foreign names are asked of, and which of them to ask first. Pure: the time is given.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

/// RFC 1035 §4.2.
const PORT: u16 = 53;
/// `MAXNS` of resolv.h: what the host's own programs use.
const MOST: usize = 3;
/// A resolver that failed is asked last for so long, doubling up to [`LONGEST_REST`].
const REST: Duration = Duration::from_secs(2);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Beyond this many the failures of the past are forgotten; a node has a handful.
const MOST_REMEMBERED: usize = 256;

/// A server that answers for all of DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resolver {
    pub address: SocketAddr,
    pub from: AskFrom,
}

/// Where the question is sent from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AskFrom {
    /// The host: its resolvers may be on its loopback (127.0.0.53), where no task gets.
    Host,
    /// The task's namespace: a resolver that a user names may be on one of the task's networks.
    Task,
}

impl Resolver {
    /// One of the host's.
    #[must_use]
    pub fn of_host(address: SocketAddr) -> Self {
        Self { address, from: AskFrom::Host }
    }

    /// One that a service asks for, at the usual port.
    #[must_use]
    pub fn of_service(address: IpAddr) -> Self {
        Self { address: SocketAddr::new(address, PORT), from: AskFrom::Task }
    }
}

/// The resolvers in the text of a host's `resolv.conf`: the first three, as its own programs use them. `link` gives the index
/// of a link, for `fe80::1%eth0`; a resolver on a link that is not there is left out.
#[must_use]
pub fn resolvers_in(text: &str, link: impl Fn(&str) -> Option<u32>) -> Vec<Resolver> {
    let lines = text.lines().map(|line| line.split(['#', ';']).next().unwrap_or_default());
    let values = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    let read = |value: &str| -> Option<SocketAddr> {
        match value.split_once('%') {
            None => Some(SocketAddr::new(value.parse().ok()?, PORT)),
            Some((address, zone)) => {
                Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, zone.parse().ok().or_else(|| link(zone))?).into())
            }
        }
    };
    values.filter_map(read).take(MOST).map(Resolver::of_host).collect()
}

/// What is remembered of resolvers that did not answer.
#[derive(Debug, Default)]
pub(super) struct Health {
    failed: HashMap<Resolver, Failed>,
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    rests_until: Instant,
}

impl Health {
    /// All of them, in the order given, but those that rest last: a dead first resolver costs a wait now and then, not with
    /// every question.
    pub(super) fn order(&self, resolvers: &[Resolver], now: Instant) -> Vec<Resolver> {
        let rests = |resolver: &Resolver| self.failed.get(resolver).map(|failed| failed.rests_until).filter(|until| now < *until);
        let mut order = resolvers.to_vec();
        order.sort_by_key(|resolver| rests(resolver));
        order
    }

    pub(super) fn answered(&mut self, resolver: Resolver) {
        self.failed.remove(&resolver);
    }

    pub(super) fn failed(&mut self, resolver: Resolver, now: Instant) {
        if self.failed.len() >= MOST_REMEMBERED && !self.failed.contains_key(&resolver) {
            self.failed.clear();
        }
        let failed = self.failed.entry(resolver).or_insert(Failed { times: 0, rests_until: now });
        // Questions that were under way together count once.
        if now >= failed.rests_until {
            failed.rests_until = now + (REST * 2u32.saturating_pow(failed.times)).min(LONGEST_REST);
            failed.times = failed.times.saturating_add(1).min(16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(last: u8) -> Resolver {
        Resolver::of_host(SocketAddr::from(([192, 0, 2, last], 53)))
    }

    #[test]
    fn resolvers_are_read_as_the_hosts_programs_do() {
        let text = "# made by hand\nsearch x.example\nnameserver 127.0.0.53 # stub\n nameserver fe80::1%eth0\nnameserver fe80::2%gone\nnameserver nonsense\nnameserver\n\
            nameserver 2001:db8::1\nnameserver 192.0.2.4\n";
        let found = resolvers_in(text, |name| (name == "eth0").then_some(7));
        let addresses: Vec<_> = found.iter().map(|resolver| resolver.address.to_string()).collect();
        assert_eq!(addresses, ["127.0.0.53:53", "[fe80::1%7]:53", "[2001:db8::1]:53"]);
        assert!(found.iter().all(|resolver| resolver.from == AskFrom::Host));
    }

    #[test]
    fn one_that_failed_is_asked_last_for_a_while() {
        let (all, now) = ([resolver(1), resolver(2)], Instant::now());
        let mut health = Health::default();
        assert_eq!(health.order(&all, now), all);
        health.failed(resolver(1), now);
        health.failed(resolver(1), now + Duration::from_millis(1));
        assert_eq!(health.order(&all, now + Duration::from_secs(1)), [resolver(2), resolver(1)]);
        assert_eq!(health.order(&all, now + Duration::from_secs(2)), all, "twice at once counts once");
        health.failed(resolver(1), now + Duration::from_secs(2));
        assert_eq!(health.order(&all, now + Duration::from_secs(5)), [resolver(2), resolver(1)], "longer the second time");
        health.failed(resolver(2), now + Duration::from_secs(5));
        assert_eq!(health.order(&all, now + Duration::from_millis(5_500)), all, "of two that rest the one that rests less");
        health.answered(resolver(2));
        assert_eq!(health.order(&all, now + Duration::from_millis(5_500)), [resolver(2), resolver(1)]);
    }

    #[test]
    fn no_rest_is_longer_than_a_minute() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        for _ in 0..40 {
            health.failed(resolver(1), now);
            now += Duration::from_secs(60);
            assert_eq!(health.order(&[resolver(1), resolver(2)], now)[0], resolver(1));
        }
    }
}
