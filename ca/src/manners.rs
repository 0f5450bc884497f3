//! Who costs much and is served nothing, and how long such a client waits for its next connection.
//!
//! A handshake costs the server a signature and a key exchange, and HTTP/2 ends a connection on which it is flooded only after it was
//! flooded. Whoever connects anew each time pays less than the server does. So there is an allowance, which comes back with time, for
//!
//! * the connections without certificate of an address,
//! * the handshakes that fail of an address, asked for by the managers' name,
//! * the floods of a node, or of an address whose clients show no certificate.
//!
//! Nodes that are behind the same address and show their certificates are not held up by those without, and connections that are
//! open stay. Addresses of this machine have no limits: tests and simulations run thousands of nodes on one machine, and who is on it has
//! other means to hurt it. Nor have managers, which could do worse: to keep one out could cost the cluster its majority.

use crate::peer::PeerIdentity;
use skep_types::NodeId;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What one source may do at once, and again after how long.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    at_once: u32,
    each: Duration,
}

/// Handshakes: hundreds of nodes behind one address may join at once.
const HANDSHAKES: Allowance = Allowance { at_once: 500, each: Duration::from_millis(10) };
/// Floods. An honest client causes none, or one by an accident of its program.
const FLOODS: Allowance = Allowance { at_once: 4, each: Duration::from_secs(15) };
/// Floods are remembered for so many times the allowance, so that they are forgiven in the end.
const MEMORY: u32 = 2;
/// Whose turn is not farther off than this waits for it. A genuine client gives up after five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Sources that are remembered. The least guilty are forgotten first.
const SOURCES: usize = 4096;

/// Whose allowance it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    /// Connections without certificate.
    Unnamed(IpAddr),
    /// Handshakes that failed, of those that should show one.
    Failed(IpAddr),
    /// Floods on connections without certificate.
    Flooding(IpAddr),
    Node(NodeId),
}

impl Source {
    fn allowance(&self) -> Allowance {
        match self {
            Self::Unnamed(_) | Self::Failed(_) => HANDSHAKES,
            Self::Flooding(_) | Self::Node(_) => FLOODS,
        }
    }
}

/// When a source may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Now,
    After(Duration),
    Never,
}

/// Until when all that was used has come back, by source.
#[derive(Debug, Default)]
struct Table(HashMap<Source, Instant>);

impl Table {
    /// How long until there is something left of the allowance.
    fn wait(&self, source: &Source, now: Instant) -> Duration {
        let Allowance { at_once, each } = source.allowance();
        let used = self.0.get(source).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        (used + each).saturating_sub(each * at_once)
    }

    fn verdict(&self, source: &Source, now: Instant) -> Verdict {
        match self.wait(source, now) {
            Duration::ZERO => Verdict::Now,
            wait if wait <= PATIENCE => Verdict::After(wait),
            _ => Verdict::Never,
        }
    }

    fn charge(&mut self, source: Source, now: Instant) {
        let Allowance { at_once, each } = source.allowance();
        if self.0.len() >= SOURCES && !self.0.contains_key(&source) {
            self.forget(now);
        }
        let until = self.0.entry(source).or_insert(now);
        *until = ((*until).max(now) + each).min(now + each * at_once * MEMORY);
    }

    /// Makes room for a quarter.
    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, until| *until > now);
        if self.0.len() > SOURCES / 4 * 3 {
            let mut all: Vec<Instant> = self.0.values().copied().collect();
            let (_, middle, _) = all.select_nth_unstable(SOURCES / 4);
            let least = *middle;
            self.0.retain(|_, until| *until > least);
        }
    }
}

/// The manners of a listener's clients. Clones share them.
#[derive(Debug, Clone)]
pub struct Manners {
    table: Arc<Mutex<Table>>,
    /// Whether addresses of this machine have no limits.
    spares_local: bool,
}

/// A client that has used up what its source may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many connections in too short a time that came to nothing")]
pub struct Unruly;

impl Default for Manners {
    fn default() -> Self {
        Self::new(true)
    }
}

impl Manners {
    pub(crate) fn new(spares_local: bool) -> Self {
        Self { table: Arc::default(), spares_local }
    }

    /// The client of a connection sent so much that costs and means nothing that the connection was ended.
    pub fn flooded(&self, peer: Option<&PeerIdentity>, address: Option<IpAddr>) {
        match peer {
            Some(peer) if peer.is_manager() => {}
            Some(peer) => {
                tracing::warn!(node = %peer.node_id, "this node flooded its connection, which was closed");
                self.charge(Source::Node(peer.node_id.clone()));
            }
            None => {
                if let Some(address) = self.counted(address) {
                    tracing::warn!(%address, "a client without certificate flooded its connection, which was closed");
                    self.charge(Source::Flooding(address));
                }
            }
        }
    }

    /// # Errors
    /// If this node flooded its connections too often.
    pub(crate) fn may_enter(&self, peer: &PeerIdentity) -> Result<(), Unruly> {
        let verdict = || self.table().verdict(&Source::Node(peer.node_id.clone()), Instant::now());
        if peer.is_manager() || verdict() == Verdict::Now { Ok(()) } else { Err(Unruly) }
    }

    pub(crate) fn lane(&self, address: Option<IpAddr>, shows_certificate: bool) -> Lane<'_> {
        Lane { manners: self, address: self.counted(address), shows_certificate }
    }

    /// `None`: it has no limits. The addresses of one IPv6 network are one source: who has one has all.
    fn counted(&self, address: Option<IpAddr>) -> Option<IpAddr> {
        let address = address?.to_canonical();
        match address {
            _ if self.spares_local && address.is_loopback() => None,
            IpAddr::V4(_) => Some(address),
            IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()),
        }
    }

    fn charge(&self, source: Source) {
        self.table().charge(source, Instant::now());
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the clients of one address come in: with or without a certificate.
#[derive(Debug)]
pub(crate) struct Lane<'a> {
    manners: &'a Manners,
    address: Option<IpAddr>,
    shows_certificate: bool,
}

impl Lane<'_> {
    /// Returns when the client may go on. One that may not is kept waiting all the same: it would only come back.
    ///
    /// # Errors
    /// If it would have to wait too long.
    pub(crate) async fn enter(&self) -> Result<(), Unruly> {
        let Some(address) = self.address else { return Ok(()) };
        match self.verdict(address, Instant::now()) {
            Verdict::Now => Ok(()),
            Verdict::After(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Verdict::Never => {
                tokio::time::sleep(PATIENCE).await;
                Err(Unruly)
            }
        }
    }

    fn verdict(&self, address: IpAddr, now: Instant) -> Verdict {
        let mut table = self.manners.table();
        if self.shows_certificate {
            return table.verdict(&Source::Failed(address), now);
        }
        if table.verdict(&Source::Flooding(address), now) != Verdict::Now {
            return Verdict::Never;
        }
        let source = Source::Unnamed(address);
        let verdict = table.verdict(&source, now);
        if verdict != Verdict::Never {
            table.charge(source, now);
        }
        verdict
    }

    /// The handshake cost what it costs, for nothing.
    pub(crate) fn failed(&self) {
        if let Some(address) = self.address.filter(|_| self.shows_certificate) {
            self.manners.charge(Source::Failed(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0xc000_0200 + number).into()
    }

    #[tokio::test(start_paused = true)]
    async fn an_allowance_is_used_up_and_comes_back() {
        let (mut table, now, source) = (Table::default(), Instant::now(), Source::Node(NodeId::for_test(1)));
        for _ in 0..FLOODS.at_once {
            assert_eq!(table.verdict(&source, now), Verdict::Now);
            table.charge(source.clone(), now);
        }
        assert_eq!(table.verdict(&source, now), Verdict::Never);
        assert_eq!(table.verdict(&Source::Node(NodeId::for_test(2)), now), Verdict::Now);
        let soon = now + FLOODS.each - PATIENCE / 2;
        assert_eq!(table.verdict(&source, soon), Verdict::After(PATIENCE / 2));
        assert_eq!(table.verdict(&source, now + FLOODS.each), Verdict::Now);
        // However often, it is forgiven in the end.
        for _ in 0..1000 {
            table.charge(source.clone(), now);
        }
        assert_eq!(table.verdict(&source, now + FLOODS.each * FLOODS.at_once * (MEMORY - 1)), Verdict::Never);
        assert_eq!(table.verdict(&source, now + FLOODS.each * FLOODS.at_once * MEMORY), Verdict::Now);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_has_a_bound_and_the_guiltiest_stay() {
        let (mut table, now) = (Table::default(), Instant::now());
        let guilty = Source::Node(NodeId::for_test(1));
        for _ in 0..FLOODS.at_once {
            table.charge(guilty.clone(), now);
        }
        for number in 0..4 * u32::try_from(SOURCES).unwrap() {
            table.charge(Source::Unnamed(address(number)), now);
            assert!(table.0.len() <= SOURCES);
        }
        assert_eq!(table.verdict(&guilty, now), Verdict::Never);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_without_certificate_wait_and_do_not_hold_up_those_with_one() {
        let (manners, far) = (Manners::new(true), Some(address(1)));
        let begun = Instant::now();
        for _ in 0..HANDSHAKES.at_once {
            manners.lane(far, false).enter().await.unwrap();
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..10 {
            manners.lane(far, false).enter().await.unwrap();
        }
        assert!(begun.elapsed() >= 9 * HANDSHAKES.each, "one after the other");
        let now = Instant::now();
        while manners.lane(far, false).verdict(far.unwrap(), now) != Verdict::Never {}
        let waited = Instant::now();
        assert_eq!(manners.lane(far, false).enter().await, Err(Unruly));
        assert_eq!(waited.elapsed(), PATIENCE);
        for _ in 0..3 * HANDSHAKES.at_once {
            let waited = Instant::now();
            manners.lane(far, true).enter().await.unwrap();
            manners.lane(Some(address(2)), true).enter().await.unwrap();
            manners.lane(Some("127.0.0.1".parse().unwrap()), false).enter().await.unwrap();
            assert_eq!(waited.elapsed(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_count_where_a_certificate_is_to_be_shown() {
        let (manners, far) = (Manners::new(true), Some(address(1)));
        for _ in 0..2 * HANDSHAKES.at_once {
            manners.lane(far, true).failed();
        }
        assert_eq!(manners.lane(far, true).enter().await, Err(Unruly));
        manners.lane(far, false).enter().await.unwrap();
        manners.lane(Some(address(2)), true).enter().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_flooded_without_certificate_is_kept_out_with_its_whole_network() {
        let manners = Manners::new(true);
        let (one, other, mapped): (IpAddr, IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::2:1".parse().unwrap(), "::ffff:127.0.0.1".parse().unwrap());
        for _ in 0..FLOODS.at_once {
            manners.lane(Some(other), false).enter().await.unwrap();
            manners.flooded(None, Some(one));
            manners.flooded(None, Some(mapped));
            manners.flooded(None, None);
        }
        assert_eq!(manners.lane(Some(other), false).enter().await, Err(Unruly));
        for free in [Some("2001:db8:0:1::1".parse().unwrap()), Some(mapped), None] {
            manners.lane(free, false).enter().await.unwrap();
        }
        manners.lane(Some(one), true).enter().await.unwrap();
        tokio::time::sleep(FLOODS.each).await;
        manners.lane(Some(one), false).enter().await.unwrap();
    }
}
