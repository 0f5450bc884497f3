//! Elections and signs of life: carries out what `election.rs` decides.

use crate::codec::{self, CodecError};
use crate::election::{self, Ballot, Outlook, Role, Step, Tally, Waits};
use crate::raft::lines::Lines;
use crate::raft::network::{RaftCall, RaftTransport};
use crate::raft::types::{LogId, Member, Membership, Raft, RaftId, Vote};
use crate::seam::between;
use openraft::ServerState;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Would you vote for me? Nothing changes by it anywhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PreVoteRequest {
    pub(crate) candidate: RaftId,
    pub(crate) last: Option<LogId>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PreVoteAnswer {
    pub(crate) promised: bool,
    /// Who answers leads a majority.
    pub(crate) leads: bool,
    /// The candidate is a member as far as the answering manager has applied.
    pub(crate) member: bool,
    /// The entry that made the membership so.
    pub(crate) membership: Option<LogId>,
}

/// Hold an election at once: the leader wants to go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TimeoutNow {
    pub(crate) leader: RaftId,
    pub(crate) term: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TimeoutNowAnswer {
    pub(crate) accepted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    /// When a leader was heard.
    heard: Option<Instant>,
    /// When a leader was heard, a vote given, an election begun, or the store started.
    stirred: Instant,
}

/// How often an election that was ordered is held if the first finds voters still bound to the old leader.
const ORDERED_TRIES: usize = 4;

/// What one manager knows of its leader, and its part in elections.
pub(crate) struct Polls {
    me: RaftId,
    waits: Waits,
    times: Mutex<Times>,
    ordered: Mutex<Option<TimeoutNow>>,
    wake: Notify,
    removed: watch::Sender<bool>,
}

impl Polls {
    pub(crate) fn new(me: RaftId, waits: Waits) -> Arc<Self> {
        let times = Times { heard: None, stirred: Instant::now() };
        Arc::new(Self {
            me,
            waits,
            times: Mutex::new(times),
            ordered: Mutex::new(None),
            wake: Notify::new(),
            removed: watch::Sender::new(false),
        })
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since a leader was heard.
    pub(crate) fn leader_heard(&self) -> Option<Duration> {
        self.times().heard.map(|at| at.elapsed())
    }

    /// Whether a leader said that this manager is no member any more.
    pub(crate) fn removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    fn stir(&self) {
        self.times().stirred = Instant::now();
    }

    /// A message of a leader has come in; it counts unless a later one is known.
    ///
    /// It counts when it arrives, not when raft comes to it: a disk that keeps us waiting is no sign of a dead leader.
    pub(crate) fn hear(&self, raft: &Raft, vote: &Vote) {
        if !vote.is_committed() || *vote < raft.server_metrics().borrow().vote {
            return;
        }
        let now = Instant::now();
        *self.times() = Times { heard: Some(now), stirred: now };
        if *self.removed.borrow() {
            self.removed.send_replace(false); // added again
            self.wake.notify_one();
        }
    }

    /// A vote was given: the candidate gets time to win.
    pub(crate) fn voted(&self) {
        self.stir();
    }

    /// Answers from what was last published, so that neither a busy raft nor a slow disk holds it up.
    pub(crate) fn promise(&self, raft: &Raft, request: &PreVoteRequest) -> PreVoteAnswer {
        let data = raft.data_metrics();
        let (last, applied, quorum) = {
            let data = data.borrow();
            (data.last_log, data.last_applied, data.millis_since_quorum_ack.map(Duration::from_millis))
        };
        let server = raft.server_metrics();
        let server = server.borrow();
        let quorum = quorum.filter(|_| server.state == ServerState::Leader);
        let ballot = Ballot { quorum, quiet: self.times().stirred.elapsed(), last };
        let membership = *server.membership_config.log_id();
        // What is not committed yet may be taken back.
        let known = membership <= applied;
        PreVoteAnswer {
            promised: election::promise(&ballot, request.last, &self.waits),
            leads: quorum.is_some_and(|age| age < self.waits.shortest),
            member: !known || server.membership_config.membership().get_node(&request.candidate).is_some(),
            membership: membership.filter(|_| known),
        }
    }

    /// Takes the order of a leader to follow it in office, if this manager is a voter that follows it.
    pub(crate) fn order(&self, raft: &Raft, order: TimeoutNow) -> TimeoutNowAnswer {
        let accepted = {
            let server = raft.server_metrics();
            let server = server.borrow();
            let role = election::role(self.me, server.state == ServerState::Leader, server.membership_config.membership());
            role == Role::Voter && server.current_leader == Some(order.leader) && server.vote.leader_id().get_term() == order.term
        };
        if accepted {
            *self.ordered.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
            self.wake.notify_one();
        }
        TimeoutNowAnswer { accepted }
    }

    /// Holds elections when they are due until told to stop or raft ends.
    pub(crate) async fn run(self: Arc<Self>, raft: Raft, transport: Arc<dyn RaftTransport>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.hold_elections(&raft, &transport) => {}
        }
    }

    async fn hold_elections(self: &Arc<Self>, raft: &Raft, transport: &Arc<dyn RaftTransport>) {
        let mut server = raft.server_metrics();
        let mut patience = self.draw();
        let mut failed = 0;
        let mut not_before = Instant::now();
        // Answers that a poll did not wait for.
        let mut late = JoinSet::new();
        loop {
            while late.try_join_next().is_some() {}
            let order = self.ordered.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(order) = order {
                if self.obey(raft, &order).await.is_err() {
                    return;
                }
                patience = self.draw();
            }
            let (role, membership) = {
                let server = server.borrow_and_update();
                let membership = Arc::clone(&server.membership_config);
                (election::role(self.me, server.state == ServerState::Leader, membership.membership()), membership)
            };
            let quiet = self.times().stirred.elapsed();
            if quiet < patience {
                failed = 0;
            }
            let pause = not_before.saturating_duration_since(Instant::now());
            let rests = *self.removed.borrow() || membership.log_id().is_none();
            let outlook = Outlook { role, quiet, patience, pause, waits: self.waits };
            let wait = match if rests { Step::Rest } else { election::next_step(&outlook) } {
                Step::Rest => None,
                Step::Wait(wait) => Some(wait),
                Step::Elect => {
                    if self.elect(raft).await.is_err() {
                        return;
                    }
                    continue;
                }
                step @ (Step::Ask | Step::Inquire) => {
                    let promised = self.ask(raft, transport, &membership, step == Step::Ask, &mut late).await;
                    if step == Step::Ask && promised {
                        tracing::info!(quiet_ms = quiet.as_millis(), "no leader; a majority would vote for this manager");
                        if self.elect(raft).await.is_err() {
                            return;
                        }
                        patience = self.draw();
                    } else {
                        let longest = election::pause(failed, &self.waits);
                        not_before = Instant::now() + between(self.me, longest / 2..=longest * 3 / 2);
                        failed = failed.saturating_add(1);
                    }
                    continue;
                }
            };
            let slept = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = server.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = slept => {}
            }
        }
    }

    fn draw(&self) -> Duration {
        between(self.me, self.waits.shortest..=self.waits.longest)
    }

    async fn elect(&self, raft: &Raft) -> Result<(), ()> {
        self.stir();
        raft.trigger().elect().await.map_err(drop)
    }

    /// Elections until one is won or somebody else leads: voters may be bound to the old leader for one lease yet.
    async fn obey(&self, raft: &Raft, order: &TimeoutNow) -> Result<(), ()> {
        tracing::info!(leader = order.leader, "the leader hands over to this manager");
        let mut server = raft.server_metrics();
        for _ in 0..ORDERED_TRIES {
            self.elect(raft).await?;
            let decided = server.wait_for(|server| {
                server.state == ServerState::Leader
                    || server.current_leader.is_some_and(|leader| leader != order.leader || server.vote.leader_id().get_term() > order.term)
            });
            match tokio::time::timeout(self.waits.lease.mul_f64(0.5), decided).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Asks all other voters; whether a majority has promised.
    async fn ask(
        self: &Arc<Self>,
        raft: &Raft,
        transport: &Arc<dyn RaftTransport>,
        membership: &Membership,
        for_votes: bool,
        late: &mut JoinSet<()>,
    ) -> bool {
        let request = PreVoteRequest { candidate: self.me, last: raft.data_metrics().borrow().last_log };
        let Ok(request) = codec::encode("raft request", &request) else { return false };
        let group = membership.membership();
        let mut tally = Tally::new(group.get_joint_config(), self.me);
        let mut calls = JoinSet::new();
        for voter in group.voter_ids().filter(|voter| *voter != self.me) {
            let Some(member) = group.get_node(&voter).cloned() else { continue };
            calls.spawn(pre_vote(Arc::clone(transport), voter, member, request.clone(), self.waits.lease));
        }
        while !(for_votes && (tally.won() || tally.lost()))
            && let Some(answered) = calls.join_next().await
        {
            let Ok((voter, answer)) = answered else { continue };
            tally.count(voter, answer.as_ref().is_some_and(|answer| answer.promised));
            if self.learns_of_removal(voter, answer.as_ref(), membership) {
                return false;
            }
        }
        if !tally.won() && !calls.is_empty() {
            // The next try need not wait for the others, but the leader may be the last to answer, each time, and only it knows.
            let (this, membership) = (Arc::clone(self), membership.clone());
            late.spawn(async move {
                while let Some(answered) = calls.join_next().await {
                    if answered.is_ok_and(|(voter, answer)| this.learns_of_removal(voter, answer.as_ref(), &membership)) {
                        this.wake.notify_one();
                    }
                }
            });
        }
        tally.won()
    }

    /// Whether the answer is a leader's that knows a later group without this manager.
    fn learns_of_removal(&self, voter: RaftId, answer: Option<&PreVoteAnswer>, membership: &Membership) -> bool {
        let removed = answer.is_some_and(|answer| answer.leads && !answer.member && answer.membership >= *membership.log_id());
        if removed {
            tracing::warn!(leader = voter, "this manager was removed from the raft group");
            self.removed.send_replace(true);
        }
        removed
    }
}

async fn pre_vote(
    transport: Arc<dyn RaftTransport>,
    voter: RaftId,
    member: Member,
    request: Vec<u8>,
    limit: Duration,
) -> (RaftId, Option<PreVoteAnswer>) {
    let call = transport.call(voter, &member, RaftCall::PreVote, request, limit);
    let answer = match tokio::time::timeout(limit, call).await {
        Ok(Ok(bytes)) => codec::decode("raft answer", &bytes).ok(),
        Ok(Err(_)) | Err(_) => None,
    };
    (voter, answer)
}

/// Orders `target` to follow the leader; whether it will try.
pub(crate) async fn send_order(
    transport: &Arc<dyn RaftTransport>,
    target: RaftId,
    member: &Member,
    order: &TimeoutNow,
    limit: Duration,
) -> Result<bool, CodecError> {
    let request = codec::encode("raft request", order)?;
    let call = transport.call(target, member, RaftCall::TimeoutNow, request, limit);
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(bytes)) => codec::decode::<TimeoutNowAnswer>("raft answer", &bytes).map(|answer| answer.accepted),
        Ok(Err(_)) | Err(_) => Ok(false),
    }
}

/// Heartbeats of a leader to others, beside openraft's ticks: those come at 1.5 times an interval that also bounds appends.
pub(crate) async fn pulse(raft: Raft, lines: Arc<Lines>, waits: Waits, stop: CancellationToken) {
    let mut server = raft.server_metrics();
    let mut behind = lines.watch_behind();
    loop {
        let beats = {
            let server = server.borrow_and_update();
            server.state == ServerState::Leader && server.membership_config.membership().nodes().count() > 1
        };
        if !beats {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = server.changed() => if changed.is_err() { return },
            }
            continue;
        }
        if !lines.is_held() && raft.trigger().heartbeat().await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(waits.beat) => {}
            // Followers that were told of less than is committed should not wait for the next beat.
            () = lines.more_committed(&mut behind) => {}
        }
    }
}
