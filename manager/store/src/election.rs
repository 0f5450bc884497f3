//! When to ask for votes, and whom to promise one: plain functions of what one manager knows.
//!
//! openraft (0.9.25) has no pre-vote, so its own elections are off (`enable_elect: false`) and `raft/polls.rs` asks for one
//! with `trigger().elect()` when these functions say so. What openraft does, with the place in its sources:
//! * `elect()` raises the term at once and asks all voters. It does nothing on a leader and on one that is no voter
//!   (`core/raft_core.rs`, `ExternalCommand::Elect`). A higher term ends the office of whoever leads: hence [`promise`].
//! * A voter refuses a vote for one lease (`election_timeout_max`) after its leader's last message; the first check, before
//!   log and term (`engine/engine_impl.rs`, `handle_vote_req`). The lease begins anew when a voter starts
//!   (`storage/helper.rs`). So waits here are longer than the lease.
//! * A leader's own lease begins with its election and is not prolonged by its heartbeats: soon after it would vote for
//!   anybody whose log is not behind. A leader must refuse in the pre-vote, and may give its office away by a vote.
//! * Votes are ordered by term *and* node id: of two candidates in one term the higher id wins, none is split.
//! * Ticks come every 1.5 heartbeats; `runtime_config().tick(false)` stops heartbeats and also the step that makes a leader
//!   go which was removed. `heartbeat(false)` stops only those of the tick, not `trigger().heartbeat()`.
//! * No heartbeat goes to a follower while entries or a snapshot are on the way to it; each try of those is a sign of life.
//! * An append is given up and tried again after one `heartbeat_interval`, a vote after `election_timeout_min`.

use crate::raft::types::{LogId, Member, RaftId};
use std::collections::BTreeSet;
use std::time::Duration;

/// The times of elections, derived from [`Timing`](crate::Timing).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    /// Between signs of life of a leader.
    pub(crate) beat: Duration,
    /// How long a voter keeps its word to a leader it heard: openraft's leader lease.
    pub(crate) lease: Duration,
    /// A follower waits for its leader for a random time from here on,
    pub(crate) shortest: Duration,
    /// up to here.
    pub(crate) longest: Duration,
}

impl Waits {
    /// A leader that no majority has answered for so long counts as none.
    pub(crate) fn forsaken(&self) -> Duration {
        2 * self.longest
    }

    /// A leader whose disk has not finished a write for so long is of no use: it cannot confirm anything.
    pub(crate) fn stuck(&self) -> Duration {
        5 * self.longest
    }
}

/// What a manager is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Leader,
    /// Nobody else has a vote.
    OnlyVoter,
    Voter,
    Learner,
    /// In no group, or in one that does not have it.
    Outsider,
}

/// The role of `me` in a group.
pub(crate) fn role(me: RaftId, leads: bool, membership: &openraft::Membership<RaftId, Member>) -> Role {
    if leads {
        return Role::Leader;
    }
    let configs = membership.get_joint_config();
    if configs.iter().any(|config| config.contains(&me)) {
        let alone = configs.iter().flatten().all(|voter| *voter == me);
        return if alone { Role::OnlyVoter } else { Role::Voter };
    }
    if membership.get_node(&me).is_some() { Role::Learner } else { Role::Outsider }
}

/// What to do about an election now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing until the role changes.
    Rest,
    Wait(Duration),
    /// Ask all voters whether they would vote for us, and with a majority of promises hold an election.
    Ask,
    /// Hold an election without asking: nobody else is to be asked.
    Elect,
    /// Ask only whether we are still a member.
    Inquire,
}

/// What a manager knows when it has to decide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outlook {
    pub(crate) role: Role,
    /// Since a leader was heard, a vote was given or an own election begun.
    pub(crate) quiet: Duration,
    /// How long to wait for a leader this time.
    pub(crate) patience: Duration,
    /// Until the next try after one that failed.
    pub(crate) pause: Duration,
    pub(crate) waits: Waits,
}

pub(crate) fn next_step(now: &Outlook) -> Step {
    let after = |due: Duration, then: Step| {
        let wait = due.saturating_sub(now.quiet).max(now.pause);
        if wait.is_zero() { then } else { Step::Wait(wait) }
    };
    match now.role {
        Role::Leader => Step::Rest,
        Role::OnlyVoter => after(now.waits.lease, Step::Elect),
        Role::Voter => after(now.patience, Step::Ask),
        // Those without a vote never ask for one. They want to know whether they were removed: nobody tells them.
        Role::Learner | Role::Outsider => after(now.waits.forsaken(), Step::Inquire),
    }
}

/// The pause after the `failed`th try without success: doubles up to the longest wait. Its random part is the caller's.
pub(crate) fn pause(failed: u32, waits: &Waits) -> Duration {
    waits.beat.saturating_mul(1 << failed.min(5)).min(waits.longest)
}

/// A voter that is asked for a promise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ballot {
    /// On a leader: since a majority last answered it.
    pub(crate) quorum: Option<Duration>,
    /// As in [`Outlook`].
    pub(crate) quiet: Duration,
    pub(crate) last: Option<LogId>,
}

/// Whether this voter would vote for one whose log ends at `last`.
///
/// It has no say in who is a member: a voter that lags does not know those who joined, and has to vote for them all the same.
pub(crate) fn promise(ballot: &Ballot, last: Option<LogId>, waits: &Waits) -> bool {
    let led = ballot.quiet < waits.shortest || ballot.quorum.is_some_and(|age| age < waits.shortest);
    !led && last >= ballot.last
}

/// Whether `ids` are a majority of each of the sets of voters; there are two while the group changes.
pub(crate) fn is_majority(configs: &[BTreeSet<RaftId>], ids: &BTreeSet<RaftId>) -> bool {
    configs.iter().all(|config| config.intersection(ids).count() * 2 > config.len())
}

/// Promises as they come in.
#[derive(Debug)]
pub(crate) struct Tally<'a> {
    configs: &'a [BTreeSet<RaftId>],
    promised: BTreeSet<RaftId>,
    refused: BTreeSet<RaftId>,
}

impl<'a> Tally<'a> {
    /// `me` promises itself.
    pub(crate) fn new(configs: &'a [BTreeSet<RaftId>], me: RaftId) -> Self {
        Self { configs, promised: BTreeSet::from([me]), refused: BTreeSet::new() }
    }

    pub(crate) fn count(&mut self, voter: RaftId, promised: bool) {
        let _ = if promised { self.promised.insert(voter) } else { self.refused.insert(voter) };
    }

    pub(crate) fn won(&self) -> bool {
        is_majority(self.configs, &self.promised)
    }

    /// No majority can come together any more.
    pub(crate) fn lost(&self) -> bool {
        self.configs.iter().any(|config| (config.len() - config.intersection(&self.refused).count()) * 2 <= config.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::{CommittedLeaderId, Membership};
    use std::collections::BTreeMap;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const WAITS: Waits = Waits { beat: ms(100), lease: ms(300), shortest: ms(500), longest: ms(1000) };

    fn outlook(role: Role, quiet: u64) -> Outlook {
        Outlook { role, quiet: ms(quiet), patience: ms(700), pause: Duration::ZERO, waits: WAITS }
    }

    fn id(term: u64, index: u64) -> Option<LogId> {
        Some(LogId::new(CommittedLeaderId::new(term, 1), index))
    }

    fn group(configs: &[&[RaftId]], learners: &[RaftId]) -> Membership<RaftId, Member> {
        let sets: Vec<BTreeSet<RaftId>> = configs.iter().map(|ids| ids.iter().copied().collect()).collect();
        let nodes: BTreeMap<_, _> = sets.iter().flatten().chain(learners).map(|id| (*id, Member::default())).collect();
        Membership::new(sets, nodes)
    }

    #[test]
    fn only_voters_ask_and_only_after_their_patience() {
        assert_eq!(next_step(&outlook(Role::Voter, 699)), Step::Wait(ms(1)));
        assert_eq!(next_step(&outlook(Role::Voter, 700)), Step::Ask);
        assert_eq!(next_step(&Outlook { pause: ms(40), ..outlook(Role::Voter, 900) }), Step::Wait(ms(40)));
        assert_eq!(next_step(&outlook(Role::Leader, 9_999)), Step::Rest);
        assert_eq!(next_step(&outlook(Role::OnlyVoter, 300)), Step::Elect);
        assert_eq!(next_step(&outlook(Role::Learner, 1_999)), Step::Wait(ms(1)));
        assert_eq!(next_step(&outlook(Role::Learner, 99_999)), Step::Inquire);
        assert_eq!(next_step(&outlook(Role::Outsider, 99_999)), Step::Inquire);
    }

    #[test]
    fn roles_follow_from_the_membership() {
        assert_eq!(role(1, false, &group(&[&[1]], &[])), Role::OnlyVoter);
        assert_eq!(role(1, true, &group(&[&[1]], &[])), Role::Leader);
        assert_eq!(role(1, false, &group(&[&[1]], &[2])), Role::OnlyVoter);
        assert_eq!(role(2, false, &group(&[&[1]], &[2])), Role::Learner);
        assert_eq!(role(2, false, &group(&[&[1], &[1, 2]], &[])), Role::Voter);
        assert_eq!(role(1, false, &group(&[&[1], &[1, 2]], &[])), Role::Voter);
        assert_eq!(role(3, false, &group(&[&[1], &[1, 2]], &[])), Role::Outsider);
        assert_eq!(role(3, false, &Membership::new(Vec::new(), BTreeMap::new())), Role::Outsider);
    }

    #[test]
    fn a_promise_wants_silence_and_a_log_that_is_not_behind() {
        let ballot = Ballot { quorum: None, quiet: ms(500), last: id(2, 10) };
        assert!(promise(&ballot, id(2, 10), &WAITS));
        assert!(promise(&ballot, id(3, 1), &WAITS), "a later term counts more than a longer log");
        assert!(!promise(&ballot, id(2, 9), &WAITS));
        assert!(!promise(&ballot, None, &WAITS));
        assert!(!promise(&Ballot { quiet: ms(499), ..ballot }, id(9, 99), &WAITS), "a leader was heard just now");
        assert!(!promise(&Ballot { quorum: Some(ms(100)), ..ballot }, id(9, 99), &WAITS), "it leads a majority");
        assert!(promise(&Ballot { quorum: Some(ms(700)), ..ballot }, id(2, 10), &WAITS), "it leads nobody any more");
        assert!(promise(&Ballot { last: None, ..ballot }, None, &WAITS));
    }

    #[test]
    fn both_halves_of_a_changing_group_have_to_agree() {
        let set = |ids: &[RaftId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let configs = [set(&[1, 2, 3]), set(&[1, 2, 3, 4, 5])];
        let mut tally = Tally::new(&configs, 1);
        assert!(!tally.won() && !tally.lost());
        tally.count(4, true);
        tally.count(5, true);
        assert!(!tally.won(), "1, 4 and 5 are three of five but one of three");
        tally.count(2, false);
        assert!(!tally.lost());
        tally.count(3, true);
        assert!(tally.won());
        let mut tally = Tally::new(&configs, 1);
        tally.count(2, false);
        tally.count(3, false);
        assert!(tally.lost() && !tally.won());
        assert!(is_majority(&configs, &set(&[1, 2, 3])) && !is_majority(&configs, &set(&[3, 4, 5])));
    }

    #[test]
    fn tries_come_slower_when_nobody_answers() {
        assert_eq!(pause(0, &WAITS), ms(100));
        assert_eq!(pause(2, &WAITS), ms(400));
        assert_eq!(pause(60, &WAITS), ms(1000));
    }
}
