//! Handing the leadership over.
//!
//! The leader stops taking proposals, waits until its successor has everything, keeps silent so that no voter is bound to it
//! any more, and tells the successor to hold an election now. The leader is itself a voter without a lease, so that with three
//! voters nobody has to be waited for.

use crate::election::{self, Waits};
use crate::error::StoreError;
use crate::leadership::Leadership;
use crate::raft::lines::Lines;
use crate::raft::polls::{TimeoutNow, send_order};
use crate::raft::types::{LogId, Member, Raft, RaftId};
use openraft::ServerState;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Whether the leadership is being handed over. Shared with whoever would write meanwhile.
#[derive(Default)]
pub(crate) struct Transfer {
    on: AtomicBool,
    /// Held while an entry is being committed.
    pub(crate) writing: Mutex<()>,
    /// One transfer at a time.
    turn: Mutex<()>,
    /// There is no space for what others want written.
    pub(crate) full: Notify,
}

/// Ends the transfer when dropped.
struct Handing<'a>(&'a Transfer);

impl Drop for Handing<'_> {
    fn drop(&mut self) {
        self.0.on.store(false, Ordering::Release);
    }
}

impl Transfer {
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    fn begin(&self) -> Handing<'_> {
        self.on.store(true, Ordering::Release);
        Handing(self)
    }
}

/// Another voter that could lead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Successor {
    id: RaftId,
    member: Member,
    matched: Option<LogId>,
    /// Since it last answered.
    answered: Option<Duration>,
}

/// The most advanced first, those that were silent lately last: an idle leader does not learn from the log who is dead.
fn order(mut successors: Vec<Successor>, waits: &Waits) -> Vec<Successor> {
    let silent = |successor: &Successor| successor.answered.is_none_or(|since| since >= waits.shortest);
    successors.sort_by_key(|successor| (silent(successor), std::cmp::Reverse(successor.matched), successor.answered));
    successors
}

/// The leader's means of handing over. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Office {
    pub(crate) me: RaftId,
    pub(crate) raft: Raft,
    pub(crate) lines: Arc<Lines>,
    pub(crate) waits: Waits,
    pub(crate) transfer: Arc<Transfer>,
    pub(crate) leadership: watch::Receiver<Leadership>,
}

/// A leader without space for more hands over, but not to and fro between managers that all have none.
const FULL: Duration = Duration::from_secs(30);
const FULL_LIMIT: Duration = Duration::from_secs(3);

/// Hands over when the leader's disk is full, until told to stop.
pub(crate) async fn give_way_when_full(office: Office, stop: CancellationToken) {
    let give_way = async {
        loop {
            office.transfer.full.notified().await;
            match office.hand_over(FULL_LIMIT).await {
                Ok(leader) => tracing::warn!(leader, "no space left here; handed the leadership over"),
                Err(error) => tracing::debug!(%error, "no space left here, and nobody takes over"),
            }
            tokio::time::sleep(FULL).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = give_way => {}
    }
}

impl Office {
    /// See [`Store::hand_over`](crate::Store::hand_over).
    pub(crate) async fn hand_over(&self, limit: Duration) -> Result<RaftId, StoreError> {
        let deadline = Instant::now() + limit;
        let _turn = timeout_at(deadline, self.transfer.turn.lock()).await.map_err(|_| StoreError::NotTaken)?;
        let leader = {
            let leadership = self.leadership.borrow();
            (!leadership.is_leader).then(|| leadership.leader.clone())
        };
        if let Some(leader) = leader {
            return Err(StoreError::NotLeader { leader: leader.map(|(_, member)| member) });
        }
        let _handing = self.transfer.begin();
        // What is being committed gets its answer first.
        drop(timeout_at(deadline, self.transfer.writing.lock()).await.map_err(|_| StoreError::NotTaken)?);
        timeout_at(deadline, self.try_all(deadline)).await.unwrap_or(Err(StoreError::NotTaken))
    }

    /// Tries one successor after the other until somebody else leads.
    async fn try_all(&self, deadline: Instant) -> Result<RaftId, StoreError> {
        let successors = order(self.successors(), &self.waits);
        if successors.is_empty() {
            return Err(StoreError::NoSuccessor);
        }
        let mut tries = successors.iter();
        while let Some(successor) = tries.next() {
            // The rest of the time is shared by those that were not tried yet.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(tries.len() + 1).unwrap_or(u32::MAX);
            tracing::info!(to = successor.id, member = %successor.member, "handing the leadership over");
            if let Some(leader) = self.try_one(successor, Instant::now() + share).await? {
                return Ok(leader);
            }
            tracing::warn!(to = successor.id, "the leadership was not taken");
        }
        Err(StoreError::NotTaken)
    }

    fn successors(&self) -> Vec<Successor> {
        let group = Arc::clone(&self.raft.server_metrics().borrow().membership_config);
        let group = group.membership();
        let data = self.raft.data_metrics();
        let data = data.borrow();
        let matched = |id: &RaftId| data.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
        let voters = group.voter_ids().filter(|id| *id != self.me);
        voters
            .filter_map(|id| {
                let member = group.get_node(&id)?.clone();
                Some(Successor { id, member, matched: matched(&id), answered: self.lines.answered(id) })
            })
            .collect()
    }

    async fn try_one(&self, successor: &Successor, until: Instant) -> Result<Option<RaftId>, StoreError> {
        if !self.has_all(successor.id, until).await? {
            return Ok(None);
        }
        let _silent = self.lines.hold();
        // Whatever came in between would make voters refuse the successor.
        if !self.has_all(successor.id, Instant::now()).await? {
            return Ok(None);
        }
        let (term, two_suffice) = {
            let server = self.raft.server_metrics();
            let server = server.borrow();
            let group = server.membership_config.membership();
            let two = BTreeSet::from([self.me, successor.id]);
            (server.vote.leader_id().get_term(), election::is_majority(group.get_joint_config(), &two))
        };
        if !two_suffice {
            // Other voters refuse until their lease has ended.
            tokio::time::sleep(self.waits.lease + self.waits.beat / 4).await;
        }
        let left = until.saturating_duration_since(Instant::now());
        let order = TimeoutNow { leader: self.me, term };
        let sent = send_order(&self.lines.transport, successor.id, &successor.member, &order, left.min(self.waits.longest)).await;
        if !sent.map_err(|source| StoreError::Raft { source: Box::new(source) })? {
            return Ok(None);
        }
        let mut server = self.raft.server_metrics();
        let followed =
            server.wait_for(|server| server.state != ServerState::Leader && server.current_leader.is_some_and(|leader| leader != self.me));
        match timeout_at(until, followed).await {
            Ok(Ok(server)) => Ok(server.current_leader),
            Ok(Err(_)) => Err(StoreError::Stopped),
            Err(_) => Ok(None),
        }
    }

    /// Waits until the successor has every entry of ours.
    async fn has_all(&self, successor: RaftId, until: Instant) -> Result<bool, StoreError> {
        let mut data = self.raft.data_metrics();
        let has_all = data.wait_for(|data| {
            let matched = data.replication.as_ref().and_then(|all| all.get(&successor).copied().flatten());
            matched >= data.last_log
        });
        match timeout_at(until, has_all).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(_)) => Err(StoreError::Stopped),
            Err(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::CommittedLeaderId;

    #[test]
    fn the_most_advanced_goes_first_and_the_silent_last() {
        let ms = Duration::from_millis;
        let waits = Waits { beat: ms(100), lease: ms(300), shortest: ms(500), longest: ms(1000) };
        let successor = |id, index, answered: Option<u64>| Successor {
            id,
            member: Member::default(),
            matched: Some(LogId::new(CommittedLeaderId::new(1, 1), index)),
            answered: answered.map(ms),
        };
        let all = vec![successor(2, 9, None), successor(3, 9, Some(900)), successor(4, 7, Some(20)), successor(5, 8, Some(40))];
        let ids: Vec<RaftId> = order(all, &waits).iter().map(|successor| successor.id).collect();
        assert_eq!(ids, [5, 4, 2, 3]);
    }
}
