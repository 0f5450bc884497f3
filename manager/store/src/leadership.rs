//! Who leads, told only when the leader has everything applied and a majority answers it.

use crate::election::Waits;
use crate::raft::lines::{Held, Lines};
use crate::raft::runtime::Rest;
use crate::raft::types::{Batch, Member, Raft, RaftId};
use openraft::ServerState;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Who leads the managers, as this one knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This manager leads, and its view contains all that was ever acknowledged. One that no majority has answered for a
    /// while does not lead, though it may again.
    pub is_leader: bool,
    /// The leader, this one included; `None` during an election.
    pub leader: Option<(RaftId, Member)>,
    /// Rises with every leader.
    pub term: u64,
}

/// Confirming takes a round to a majority; after this time it is tried again.
const CONFIRM: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);

/// Watches raft and publishes [`Leadership`] until told to stop or raft ends.
pub(crate) async fn watch_leadership(
    raft: Raft,
    lines: Arc<Lines>,
    waits: Waits,
    rest: Rest,
    publish: watch::Sender<Leadership>,
    stop: CancellationToken,
) {
    follow(raft, &lines, &waits, &rest, &publish, stop).await;
    // Whoever looks later must not take a stopped manager for a leader.
    publish.send_modify(|last| {
        last.is_leader = false;
        last.leader = None;
    });
}

async fn follow(raft: Raft, lines: &Arc<Lines>, waits: &Waits, rest: &Rest, publish: &watch::Sender<Leadership>, stop: CancellationToken) {
    let mut metrics = raft.server_metrics();
    let mut confirmed = None;
    let mut office = Office::default();
    loop {
        let (now, alone, others_vote) = {
            let metrics = metrics.borrow_and_update();
            let group = metrics.membership_config.membership();
            let member = |id: &RaftId| group.get_node(id).cloned().unwrap_or_default();
            let now = Leadership {
                is_leader: metrics.state == ServerState::Leader,
                leader: metrics.current_leader.map(|id| (id, member(&id))),
                term: metrics.vote.leader_id().get_term(),
            };
            (now, group.nodes().count() == 1, group.voter_ids().any(|id| id != metrics.id))
        };
        // The only manager has nobody to send heartbeats to and nobody to lose an election to: its raft may sleep.
        let may_rest = alone && now.is_leader && confirmed == Some(now.term);
        raft.runtime_config().tick(!may_rest);
        rest.set(may_rest);
        let quorum = raft.data_metrics().borrow().millis_since_quorum_ack.map(Duration::from_millis);
        let stuck = lines.log.writing_for().is_some_and(|time| time >= waits.stuck());
        let forsaken = office.is_forsaken(&now, others_vote, quorum, waits) || (now.is_leader && others_vote && stuck);
        office.keep_silence(forsaken, lines, waits);
        if forsaken {
            confirmed = None;
        }
        let unconfirmed = now.is_leader && confirmed != Some(now.term);
        let shown =
            Leadership { is_leader: now.is_leader && !unconfirmed, leader: if unconfirmed { None } else { now.leader.clone() }, ..now };
        publish.send_if_modified(|old| {
            let new = *old != shown;
            if new {
                tracing::info!(leads = shown.is_leader, leader = ?shown.leader, term = shown.term, "leadership");
                *old = shown;
            }
            new
        });
        if unconfirmed && !forsaken {
            // An entry of the own term: once it is applied, so is everything before it.
            let confirming = tokio::time::timeout(CONFIRM, raft.client_write(Batch::default()));
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                done = confirming => done,
            };
            match done {
                Ok(Ok(_)) => confirmed = Some(now.term),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "leadership not confirmed");
                    tokio::time::sleep(RETRY).await;
                }
                Err(_) => {}
            }
            if metrics.has_changed().is_err() {
                return;
            }
            continue;
        }
        // Only a leader with others has to look whether they still answer.
        let look = async {
            if now.is_leader && others_vote { tokio::time::sleep(waits.shortest / 2).await } else { std::future::pending().await }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() { return },
            () = look => {}
        }
    }
}

/// The time in office of a leader. openraft's stays one until it hears of a higher term, however long nobody answers it.
#[derive(Default)]
struct Office {
    since: Option<(u64, Instant)>,
    silence: Option<Silence>,
}

/// A leader that hears nobody may still be heard, and would keep its followers from electing another. So it is silent by
/// turns: long enough for an election, then speaking, to notice when they are back.
struct Silence {
    held: Option<Held>,
    until: Instant,
}

impl Office {
    fn is_forsaken(&mut self, now: &Leadership, others_vote: bool, quorum: Option<Duration>, waits: &Waits) -> bool {
        if !now.is_leader {
            self.since = None;
            return false;
        }
        let since = match self.since {
            Some((term, since)) if term == now.term => since,
            Some(_) | None => self.since.insert((now.term, Instant::now())).1,
        };
        others_vote && quorum.unwrap_or(Duration::MAX).min(since.elapsed()) >= waits.forsaken()
    }

    fn keep_silence(&mut self, forsaken: bool, lines: &Arc<Lines>, waits: &Waits) {
        if !forsaken {
            self.silence = None;
            return;
        }
        let now = Instant::now();
        match &mut self.silence {
            None => {
                tracing::warn!("no majority of managers answers, or the disk does not; not leading for now");
                self.silence = Some(Silence { held: Some(lines.hold()), until: now + waits.longest + waits.lease });
            }
            Some(silence) if now >= silence.until => {
                silence.until = now + if silence.held.is_some() { waits.longest } else { waits.longest + waits.lease };
                silence.held = if silence.held.is_some() { None } else { Some(lines.hold()) };
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits {
        beat: Duration::from_millis(5),
        lease: Duration::from_millis(15),
        shortest: Duration::from_millis(20),
        longest: Duration::from_millis(50),
    };

    #[tokio::test]
    async fn a_leader_is_forsaken_when_no_majority_answers_and_not_right_after_its_election() {
        let leads = |term| Leadership { is_leader: true, leader: None, term };
        let mut office = Office::default();
        assert!(!office.is_forsaken(&leads(1), true, None, &WAITS), "nobody had time to answer");
        tokio::time::sleep(WAITS.forsaken()).await;
        assert!(office.is_forsaken(&leads(1), true, None, &WAITS));
        assert!(!office.is_forsaken(&leads(1), true, Some(Duration::from_millis(99)), &WAITS));
        assert!(office.is_forsaken(&leads(1), true, Some(Duration::from_millis(100)), &WAITS));
        assert!(!office.is_forsaken(&leads(1), false, None, &WAITS), "the only voter is its own majority");
        assert!(!office.is_forsaken(&leads(2), true, Some(Duration::from_secs(9)), &WAITS), "that was another office");
        assert!(!office.is_forsaken(&Leadership::default(), true, None, &WAITS));
    }
}
