//! One agent's life: a session after the other, until it is told to stop (spec wire-behaviour 9).

use crate::dial::{Http2, connect, origin};
use crate::fleet::Shared;
use crate::member::Member;
use crate::play::{Now, Play};
use crate::tally::{add, shift};
use skep_agent::Backoff;
use skep_proto::v1::{self, dispatcher_client::DispatcherClient, log_broker_client::LogBrokerClient};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use v1::assignments_message::Type;

/// For a call and for the first message of a session.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// If a manager names no period.
const DEFAULT_PERIOD: Duration = Duration::from_secs(5);
/// A session that lasted for less counts as an attempt that failed.
const STOOD: Duration = Duration::from_secs(3);
/// Statuses in one call.
const REPORTS: usize = 1024;
/// Offers a manager the last assignment that was applied, so that it need not send everything again.
const APPLIED: &str = "skep-applied";

/// Everything one agent has.
pub(crate) struct Agent {
    pub(crate) member: Member,
    pub(crate) number: usize,
    pub(crate) shared: Arc<Shared>,
    /// Lets one task fail.
    pub(crate) poke: Arc<Notify>,
    pub(crate) session_id: String,
    pub(crate) state: Mutex<State>,
    pub(crate) round: u64,
}

/// What its loops share.
#[derive(Default)]
pub(crate) struct State {
    play: Play,
    /// Of the last message that was applied.
    applied: String,
    /// What the tally has of this agent.
    running: u64,
    started: u64,
    failed: u64,
}

struct Lost {
    registered: bool,
    reason: String,
    /// The connection, if the manager itself ended the session over it and may be asked again.
    channel: Option<Http2>,
}

impl Lost {
    fn broken(reason: String) -> Self {
        Self { registered: false, reason, channel: None }
    }
}

/// Whether the manager said so itself, over a connection that stands.
fn is_answer(status: &Status) -> bool {
    let own = std::error::Error::source(status).is_some() || status.code() == Code::DeadlineExceeded;
    !own && !matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented)
}

/// Why a stream or a call ended a session, and whether the connection is still good.
struct Ended {
    reason: String,
    answered: bool,
}

impl Ended {
    fn of(what: &str, status: &Status) -> Self {
        Self { reason: words(what, status), answered: is_answer(status) }
    }

    fn said(reason: &str) -> Self {
        Self { reason: reason.to_owned(), answered: true }
    }
}

async fn limited<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL_LIMIT, call).await.map_err(|_| Status::deadline_exceeded("took too long"))?
}

fn words(what: &str, status: &Status) -> String {
    format!("{what}: {:?} {}", status.code(), status.message())
}

impl Agent {
    pub(crate) fn new(member: Member, number: usize, shared: Arc<Shared>, poke: Arc<Notify>) -> Self {
        Self { member, number, shared, poke, session_id: String::new(), state: Mutex::default(), round: 0 }
    }

    /// Until the fleet stops. The first session begins after `pause`.
    pub(crate) async fn run(mut self, pause: Duration) {
        let mut backoff = Backoff::default();
        let mut lost_at = Instant::now();
        let mut failed: Option<String> = None;
        // A manager that answered but could not help, and the connection to it.
        let mut kept: Option<(String, Http2)> = None;
        let stop = self.shared.stop.clone();
        let mut delay = pause;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
            }
            let (address, channel) = match kept.take() {
                Some((address, channel)) => (address, Some(channel)),
                None => match self.shared.managers.choose(failed.as_deref(), rand::random()) {
                    Some(address) => (address, None),
                    None => break,
                },
            };
            let began = Instant::now();
            let lost = tokio::select! {
                () = stop.cancelled() => break,
                lost = self.once(&address, channel) => lost,
            };
            if lost.registered {
                add(&self.shared.tally.counters.lost, 1);
                self.shared.tally.counters.connected.fetch_sub(1, Ordering::Relaxed);
            }
            if lost.registered && began.elapsed() > STOOD {
                backoff.lost();
                lost_at = Instant::now();
            } else {
                backoff.failed(lost_at.elapsed());
            }
            tracing::debug!(node = %self.member.node_id, manager = address, reason = lost.reason, "session lost");
            self.shared.tally.note_problem(format!("{address}: {}", lost.reason));
            delay = backoff.delay(rand::random());
            match lost.channel {
                Some(channel) if backoff.same_again() => kept = Some((address, channel)),
                _ => failed = Some(address),
            }
        }
    }

    /// Holds a session until it ends. `kept`: a connection to this manager that stands.
    async fn once(&mut self, address: &str, kept: Option<Http2>) -> Lost {
        let counters = &self.shared.tally.counters;
        let member = self.member.clone();
        let channel = match kept {
            Some(channel) => channel,
            None => match connect(address, |tcp| async move { member.secure(tcp).await }).await {
                Ok(channel) => {
                    add(&counters.dialled, 1);
                    channel
                }
                Err(error) => {
                    add(&counters.dial_failures, 1);
                    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                    return Lost::broken(format!("{error}{cause}"));
                }
            },
        };
        // All tasks of a node come in one message (spec wire-behaviour 2.1).
        let dispatcher = DispatcherClient::with_origin(channel.clone(), origin()).max_decoding_message_size(i32::MAX as usize);
        let mut client = dispatcher.clone();
        let request = v1::SessionRequest { description: Some(self.describe()), session_id: self.session_id.clone() };
        let opened = limited(async {
            let mut stream = client.session(request).await?.into_inner();
            let first = stream.message().await?.ok_or_else(|| Status::unavailable("the manager ended the session at once"))?;
            Ok((stream, first))
        });
        let (mut stream, first) = match opened.await {
            Ok(opened) => opened,
            Err(status) => {
                add(&counters.register_failures, 1);
                let channel = is_answer(&status).then_some(channel);
                return Lost { registered: false, reason: words("registering", &status), channel };
            }
        };
        self.session_id.clone_from(&first.session_id);
        add(&counters.registered, 1);
        add(&counters.connected, 1);
        self.shared.tally.came_back(&mut self.round);
        self.listed(first);
        self.lock().play.owe_all();
        // Wakes the loop that sends reports; one permit is kept if it does not wait yet.
        let wake = Notify::new();
        let this = &*self;
        let ended = tokio::select! {
            ended = this.heartbeats(dispatcher.clone()) => ended,
            ended = this.assignments(dispatcher.clone(), &wake) => ended,
            ended = this.reports(dispatcher.clone(), &wake) => ended,
            ended = subscriptions(channel.clone()) => ended,
            ended = async {
                loop {
                    match stream.message().await {
                        Ok(Some(message)) => this.listed(message),
                        Ok(None) => break Ended::said("the manager ended the session"),
                        Err(status) => break Ended::of("session", &status),
                    }
                }
            } => ended,
        };
        Lost { registered: true, reason: ended.reason, channel: ended.answered.then_some(channel) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As a real node describes itself.
    fn describe(&self) -> v1::NodeDescription {
        let plugins = ["Log/json-file", "Network/bridge", "Network/host", "Network/overlay", "Volume/local"];
        let plugin = |name: &str| {
            let (kind, name) = name.split_once('/').unwrap_or_default();
            v1::PluginDescription { r#type: kind.into(), name: name.into() }
        };
        v1::NodeDescription {
            hostname: format!("simulated-{}", self.number),
            platform: Some(v1::Platform { architecture: "x86_64".into(), os: "linux".into() }),
            resources: Some(v1::Resources { nano_cpus: 16_000_000_000, memory_bytes: 64 << 30, generic: Vec::new() }),
            engine: Some(v1::EngineDescription {
                engine_version: "simulated".into(),
                plugins: plugins.map(plugin).to_vec(),
                ..v1::EngineDescription::default()
            }),
            tls_info: self.member.trust.tls_info(&self.member),
            ..v1::NodeDescription::default()
        }
    }

    fn listed(&self, message: v1::SessionMessage) {
        self.shared.managers.replace(message.managers.into_iter().filter_map(|weighted| weighted.peer).map(|peer| peer.addr));
    }

    async fn heartbeats(&self, mut dispatcher: DispatcherClient<Http2>) -> Ended {
        loop {
            let request = v1::HeartbeatRequest { session_id: self.session_id.clone() };
            match limited(dispatcher.heartbeat(request)).await {
                Ok(answer) => {
                    add(&self.shared.tally.counters.beats, 1);
                    let period = answer.into_inner().period.and_then(|period| Duration::try_from(period).ok());
                    tokio::time::sleep(period.filter(|period| !period.is_zero()).unwrap_or(DEFAULT_PERIOD)).await;
                }
                Err(status) => return Ended::of("heartbeat", &status),
            }
        }
    }

    async fn assignments(&self, mut dispatcher: DispatcherClient<Http2>, wake: &Notify) -> Ended {
        let mut offer = self.lock().applied.clone();
        loop {
            let mut request = Request::new(v1::AssignmentsRequest { session_id: self.session_id.clone() });
            if let Ok(value) = MetadataValue::try_from(offer.as_str())
                && !offer.is_empty()
            {
                request.metadata_mut().insert(APPLIED, value);
            }
            let mut stream = match limited(dispatcher.assignments(request)).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return Ended::of("assignments", &status),
            };
            let mut is_first = true;
            loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        let complete = message.r#type == Type::Complete as i32;
                        let reference = std::mem::replace(&mut self.lock().applied, message.results_in.clone());
                        // The first message of a stream goes on from what was offered, however the manager calls that.
                        let gap = !complete && message.applies_to != reference && !(is_first && message.applies_to == offer);
                        is_first = false;
                        self.apply(message, complete, wake);
                        if gap {
                            add(&self.shared.tally.counters.gaps, 1);
                            offer.clear();
                            break;
                        }
                    }
                    Ok(None) => return Ended::said("the manager ended the assignments"),
                    Err(status) => return Ended::of("assignments", &status),
                }
            }
        }
    }

    fn apply(&self, message: v1::AssignmentsMessage, complete: bool, wake: &Notify) {
        let tally = &self.shared.tally;
        add(if complete { &tally.counters.complete } else { &tally.counters.incremental }, 1);
        let mut state = self.lock();
        let applied = state.play.apply(message, Now::get(), &self.shared.behaviour, rand::random);
        tally.applied(&applied);
        self.note(&mut state);
        drop(state);
        wake.notify_one();
    }

    /// Tells the tally what became of the tasks.
    fn note(&self, state: &mut State) {
        let counters = &self.shared.tally.counters;
        let State { play, running, started, failed, .. } = state;
        shift(&counters.tasks_running, running, play.running());
        shift(&counters.tasks_started, started, play.started());
        shift(&counters.tasks_failed, failed, play.failed());
    }

    async fn reports(&self, mut dispatcher: DispatcherClient<Http2>, wake: &Notify) -> Ended {
        loop {
            let (updates, next) = {
                let mut state = self.lock();
                let next = state.play.tick(Now::get());
                self.note(&mut state);
                (state.play.take_reports(REPORTS), next)
            };
            if updates.is_empty() {
                tokio::select! {
                    () = wake.notified() => {}
                    () = self.poke.notified() => {
                        let mut state = self.lock();
                        state.play.fail_one(Now::get());
                        self.note(&mut state);
                    }
                    () = until(next) => {}
                }
                continue;
            }
            let count = updates.len() as u64;
            let mut unsent = PutBack { agent: self, updates: Some(updates.clone()) };
            let request = v1::UpdateTaskStatusRequest { session_id: self.session_id.clone(), updates };
            match limited(dispatcher.update_task_status(request)).await {
                Ok(_) => {}
                // The tasks are not there any more.
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Ended::of("status report", &status),
            }
            unsent.updates = None;
            add(&self.shared.tally.counters.reports, count);
            add(&self.shared.tally.counters.report_calls, 1);
        }
    }
}

async fn until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

/// Real agents wait for subscriptions to logs; nobody subscribes here, so that there is nothing to do about one.
async fn subscriptions(channel: Http2) -> Ended {
    let mut broker = LogBrokerClient::with_origin(channel, origin());
    let mut stream = match limited(broker.listen_subscriptions(v1::ListenSubscriptionsRequest {})).await {
        Ok(stream) => stream.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => return std::future::pending().await,
        Err(status) => return Ended::of("log subscriptions", &status),
    };
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Ended::said("the manager ended the log subscriptions"),
            Err(status) => return Ended::of("log subscriptions", &status),
        }
    }
}

/// Reports are owed again when the session ends while they are sent.
struct PutBack<'a> {
    agent: &'a Agent,
    updates: Option<Vec<v1::update_task_status_request::TaskStatusUpdate>>,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        if let Some(updates) = &self.updates {
            self.agent.lock().play.put_back(updates);
        }
    }
}
