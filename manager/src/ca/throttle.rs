//! How often one address may present a wrong join token. Pure.
//!
//! A join token holds 128 random bits: nobody guesses one. The limit keeps those who try from costing more than a look at a table.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Wrong tokens an address may present at once: somebody who mixes clusters up, a script that joins ten machines.
const AT_ONCE: u32 = 10;
/// Afterwards one more each so often.
const ONE_EACH: Duration = Duration::from_secs(2);
/// Addresses remembered, some 100 bytes each. When all have failed lately, new ones share one count.
const SOURCES: usize = 4096;

/// Counts wrong tokens per address.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    sources: HashMap<IpAddr, Debt>,
    strangers: Debt,
}

/// When what was spent is earned again; in the past, or never: nothing is owed.
#[derive(Debug, Default, Clone, Copy)]
struct Debt {
    until: Option<Instant>,
}

impl Debt {
    fn left(self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    fn add(&mut self, now: Instant) {
        self.until = Some(now + self.left(now) + ONE_EACH);
    }
}

impl Throttle {
    /// Whether this address may present a token now; otherwise how long it has to wait. Asked before the token is looked at: a
    /// right one is refused too, or the answer would tell it apart.
    pub(super) fn check(&self, from: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        let debt = match from.map(source) {
            None => self.strangers,
            Some(source) => match self.sources.get(&source) {
                Some(debt) => *debt,
                None if self.sources.len() < SOURCES => Debt::default(),
                None => self.strangers,
            },
        };
        let (left, limit) = (debt.left(now), ONE_EACH * AT_ONCE);
        // One more has to fit.
        if left + ONE_EACH <= limit { Ok(()) } else { Err(left + ONE_EACH - limit) }
    }

    /// A wrong token came from there.
    pub(super) fn failed(&mut self, from: Option<IpAddr>, now: Instant) {
        let Some(source) = from.map(source) else { return self.strangers.add(now) };
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, debt| !debt.left(now).is_zero());
            if self.sources.len() >= SOURCES {
                return self.strangers.add(now);
            }
        }
        self.sources.entry(source).or_default().add(now);
    }
}

/// Whoever has an IPv6 address has its whole /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn ten_wrong_tokens_then_one_each_two_seconds() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let (bad, good) = (from("192.0.2.1"), from("192.0.2.2"));
        for _ in 0..10 {
            assert_eq!(throttle.check(bad, now), Ok(()));
            throttle.failed(bad, now);
        }
        assert_eq!(throttle.check(bad, now), Err(Duration::from_secs(2)));
        assert_eq!(throttle.check(from("::ffff:192.0.2.1"), now), Err(Duration::from_secs(2)), "the same written otherwise");
        assert_eq!(throttle.check(good, now), Ok(()), "others are not concerned");
        let later = now + Duration::from_secs(2);
        assert_eq!(throttle.check(bad, later), Ok(()));
        throttle.failed(bad, later);
        assert!(throttle.check(bad, later).is_err());
        assert_eq!(throttle.check(bad, later + Duration::from_secs(60)), Ok(()));
    }

    #[test]
    fn ten_thousand_tries_in_a_minute_are_forty_looks_at_a_token() {
        let (mut throttle, begin, bad) = (Throttle::default(), Instant::now(), from("2001:db8::1"));
        let mut looks = 0;
        for attempt in 0..10_000u32 {
            let now = begin + Duration::from_millis(6) * attempt;
            if throttle.check(bad, now).is_ok() {
                looks += 1;
                throttle.failed(bad, now);
            }
        }
        assert!((38..=40).contains(&looks), "{looks}");
    }

    #[test]
    fn the_table_does_not_grow_and_an_owner_of_many_addresses_gains_nothing() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let nth = |n: u128| Some(IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) | (n << 64) | n)));
        for n in 0..20_000 {
            if throttle.check(nth(n), now).is_ok() {
                throttle.failed(nth(n), now);
            }
        }
        assert_eq!(throttle.sources.len(), SOURCES);
        assert!(throttle.check(nth(30_000), now).is_err(), "strangers share one count");
        assert!(throttle.check(nth(1), now).is_ok(), "who is known does not");
        // Within one /64 all are the same.
        let mut throttle = Throttle::default();
        for n in 0..10 {
            throttle.failed(from(&format!("2001:db8::{n:x}")), now);
        }
        assert!(throttle.check(from("2001:db8::ffff"), now).is_err());
        // Debts that are paid make room.
        let later = now + Duration::from_secs(3);
        throttle.failed(from("192.0.2.7"), later);
        assert_eq!(throttle.sources.len(), 2);
    }

    #[test]
    fn callers_without_address_share_one_count() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..10 {
            throttle.failed(None, now);
        }
        assert!(throttle.check(None, now).is_err());
        assert!(throttle.check(from("192.0.2.1"), now).is_ok());
    }
}
