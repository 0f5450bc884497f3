//! When a certificate is renewed, and why (wire-behaviour 4.5 and 7). Pure: the times come from the caller.

use skep_ca::{NodeRole, renewal_moment};
use skep_types::{IssuanceState, Node, Version};
use std::time::{Duration, Instant, SystemTime};

/// A manager that asks for a renewal may still be busy with what it asked it for.
const ROTATE_DELAY: Duration = Duration::from_millis(500);
/// A role that is wanted but not given yet comes with the next session message; after this time it is asked for.
const WANTED_DELAY: Duration = Duration::from_secs(5);
/// After a failure: this, and up to as much again, doubled with each further one (wire-behaviour 4.5).
const BASE: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(3600);

/// Why a certificate should be renewed before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urge {
    /// The managers ask for it: the root is being rotated.
    Rotate(Version),
    /// The CA would give another role by now.
    Role(NodeRole),
    /// Another role is wanted, but the CA would not give it yet, as far as is known.
    Wanted(NodeRole),
    /// Somebody in this daemon wants to know what the CA gives now.
    Asked,
}

impl Urge {
    fn delay(self) -> Duration {
        match self {
            Self::Role(_) => Duration::ZERO,
            Self::Rotate(_) | Self::Asked => ROTATE_DELAY,
            Self::Wanted(_) => WANTED_DELAY,
        }
    }

    /// The role that the new certificate must have.
    #[must_use]
    pub fn expected(self) -> Option<NodeRole> {
        match self {
            Self::Role(role) | Self::Wanted(role) => Some(role),
            Self::Rotate(_) | Self::Asked => None,
        }
    }
}

/// What the managers say about this node, held against the certificate it has. `answered`: the request to rotate that was
/// followed last; a session may still show it.
#[must_use]
pub fn urge(node: Option<&Node>, role: NodeRole, answered: Option<Version>) -> Option<Urge> {
    let node = node?;
    if node.role != role {
        return Some(Urge::Role(node.role));
    }
    if node.certificate.state == IssuanceState::Rotate && answered != Some(node.meta.version) {
        return Some(Urge::Rotate(node.meta.version));
    }
    (node.spec.desired_role != role).then_some(Urge::Wanted(node.spec.desired_role))
}

/// When the next try is due.
#[derive(Debug)]
pub struct Schedule {
    regular: SystemTime,
    urge: Option<(Urge, Instant)>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Schedule {
    /// For a certificate with this life. `random` is any number, evenly distributed.
    #[must_use]
    pub fn new(not_before: SystemTime, not_after: SystemTime, random: u64) -> Self {
        Self { regular: renewal_moment(not_before, not_after, random), urge: None, failures: 0, retry_at: None }
    }

    /// Takes in what the managers want now. Something new is not held up by earlier failures.
    pub fn want(&mut self, urge: Option<Urge>, now: Instant) {
        if self.urge.map(|(urge, _)| urge) != urge {
            self.urge = urge.map(|urge| (urge, now));
            if urge.is_some() {
                (self.failures, self.retry_at) = (0, None);
            }
        }
    }

    #[must_use]
    pub fn urge(&self) -> Option<Urge> {
        self.urge.map(|(urge, _)| urge)
    }

    /// How long until the next try. Both clocks are asked: a certificate's life is the wall clock's.
    #[must_use]
    pub fn due(&self, wall: SystemTime, now: Instant) -> Duration {
        if let Some(retry_at) = self.retry_at {
            return retry_at.saturating_duration_since(now);
        }
        let regular = self.regular.duration_since(wall).unwrap_or_default();
        match self.urge {
            Some((urge, since)) => (since + urge.delay()).saturating_duration_since(now).min(regular),
            None => regular,
        }
    }

    /// A try failed, or gave another role than the expected one. `random` is within 0..1.
    pub fn failed(&mut self, now: Instant, random: f64) {
        self.failures = self.failures.saturating_add(1);
        let most = BASE.saturating_mul(1 << (self.failures - 1).min(20));
        let pause = (BASE + most.mul_f64(random.clamp(0.0, 1.0))).min(LONGEST);
        self.retry_at = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Certificate, NodeId, NodeSpec};
    use std::time::UNIX_EPOCH;

    const HOUR: Duration = Duration::from_secs(3600);

    fn node(role: NodeRole, wanted: NodeRole, state: IssuanceState) -> Node {
        Node {
            role,
            spec: NodeSpec { desired_role: wanted, ..NodeSpec::default() },
            certificate: Certificate { state, ..Certificate::default() },
            ..Node::new(NodeId::for_test(1))
        }
    }

    #[test]
    fn a_node_renews_for_a_role_as_soon_as_the_ca_would_give_it() {
        use NodeRole::{Manager, Worker};
        let issued = IssuanceState::Issued;
        assert_eq!(urge(None, Worker, None), None);
        assert_eq!(urge(Some(&node(Worker, Worker, issued)), Worker, None), None);
        assert_eq!(urge(Some(&node(Manager, Manager, issued)), Worker, None), Some(Urge::Role(Manager)));
        // A manager that is to be demoted is in the raft group still.
        assert_eq!(urge(Some(&node(Manager, Worker, issued)), Manager, None), Some(Urge::Wanted(Worker)));
        assert_eq!(urge(Some(&node(Worker, Worker, issued)), Manager, None), Some(Urge::Role(Worker)));
    }

    #[test]
    fn a_request_to_rotate_is_followed_once() {
        let asks = node(NodeRole::Worker, NodeRole::Worker, IssuanceState::Rotate);
        let version = asks.meta.version;
        assert_eq!(urge(Some(&asks), NodeRole::Worker, None), Some(Urge::Rotate(version)));
        assert_eq!(urge(Some(&asks), NodeRole::Worker, Some(version)), None);
    }

    #[test]
    fn the_regular_moment_is_within_its_window_and_urges_come_before_it() {
        let (from, now) = (UNIX_EPOCH + HOUR, Instant::now());
        let mut schedule = Schedule::new(from, from + HOUR * 10, 7);
        let due = schedule.due(from, now);
        assert!(due >= HOUR * 5 && due <= HOUR * 8, "{due:?}");
        assert_eq!(schedule.due(from + HOUR * 9, now), Duration::ZERO);

        schedule.want(Some(Urge::Asked), now);
        assert_eq!(schedule.due(from, now), ROTATE_DELAY);
        // The same wish again does not start the wait anew.
        schedule.want(Some(Urge::Asked), now + ROTATE_DELAY);
        assert_eq!(schedule.due(from, now + ROTATE_DELAY), Duration::ZERO);
        schedule.want(Some(Urge::Role(NodeRole::Manager)), now);
        assert_eq!(schedule.due(from, now), Duration::ZERO);
        schedule.want(None, now);
        assert_eq!(schedule.due(from, now), due);
    }

    #[test]
    fn failures_make_it_wait_longer_and_longer_until_something_new_is_wanted() {
        let (from, now) = (UNIX_EPOCH, Instant::now());
        let mut schedule = Schedule::new(from, from + HOUR, 0);
        let mut pauses = Vec::new();
        for _ in 0..14 {
            schedule.failed(now, 1.0);
            pauses.push(schedule.due(from + HOUR, now).as_secs());
        }
        assert_eq!(pauses[..4], [10, 15, 25, 45]);
        assert_eq!(pauses[13], LONGEST.as_secs());
        schedule.want(Some(Urge::Role(NodeRole::Worker)), now);
        assert_eq!(schedule.due(from, now), Duration::ZERO);
    }
}
