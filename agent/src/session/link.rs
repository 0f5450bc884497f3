//! One session with one manager, from the connection to its end.

use super::assignments::{apply, sort};
use super::farewell::{self, Farewell};
use super::remotes::{ManagerAddress, Remotes};
use super::{SessionConfig, SessionState, describe, logs, networks, tunnels};
use crate::engine::Engine;
use crate::error::chain;
use skep_failpoint::failpoint;
use skep_proto::v1::assignments_message::Type;
use skep_proto::v1::dispatcher_client::DispatcherClient;
use skep_proto::v1::update_task_status_request::TaskStatusUpdate;
use skep_proto::{FromWire, ToWire, v1};
use skep_types::Node;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// For a unary call and for the first message of a session (wire-behaviour 9.1).
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Metadata that offers the last assignment message applied; managers that do not know it send everything.
const APPLIED: &str = "skep-applied";
/// As dockerd's default, if a manager names no period.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);
/// Statuses in one call: a message must stay well below 4 MiB.
const STATUSES: usize = 1024;
/// The first assignment message holds all tasks, secrets and configs of the node (wire-behaviour 2.1).
pub(super) const MAX_MESSAGE: usize = i32::MAX as usize;

/// Why a session ended.
#[derive(Debug)]
pub enum Ended {
    /// By our own wish, to be opened again at once: the node changed.
    Reopen,
    /// By our own wish, for good: this node goes.
    Told,
    Lost {
        /// Whether the manager had accepted this node.
        registered: bool,
        loss: Loss,
        /// The connection, if the manager itself ended the session and may be asked again.
        channel: Option<Channel>,
    },
}

/// What went wrong.
#[derive(Debug)]
pub struct Loss {
    /// For people.
    pub reason: String,
    /// The manager said so itself over a connection that stands, such as when it leads no more or knows no leader.
    pub answered: bool,
}

impl Loss {
    pub fn of(what: &str, status: &Status) -> Self {
        // A status of our own making, as for a broken connection, has a cause; one that came over the wire has none.
        let own = std::error::Error::source(status).is_some() || status.code() == Code::DeadlineExceeded;
        let refused = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented);
        Self { reason: words(what, status), answered: !own && !refused }
    }

    fn broken(reason: String) -> Self {
        Self { reason, answered: false }
    }
}

/// What one session works with.
pub struct Link<'a> {
    pub config: Arc<SessionConfig>,
    pub engine: Engine,
    pub remotes: &'a mut Remotes,
    pub session_id: &'a mut String,
    pub state: &'a watch::Sender<SessionState>,
    /// Of the last heartbeat.
    pub period: &'a mut Option<Duration>,
    pub farewell: watch::Receiver<Option<Farewell>>,
}

/// What a session that stood ended with.
enum Cause {
    Changed,
    Going(Farewell),
    Lost(Loss),
}

type Dispatcher = DispatcherClient<Channel>;

fn words(what: &str, status: &Status) -> String {
    format!("{what}: {}", if status.message().is_empty() { status.code().description() } else { status.message() })
}

async fn limited<T>(what: &str, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL_LIMIT, call).await.map_err(|_| Status::deadline_exceeded(format!("{what} took too long")))?
}

impl Link<'_> {
    /// Holds a session until it ends. `kept`: a connection to this manager that stands.
    pub async fn run(&mut self, address: &str, kept: Option<Channel>) -> Ended {
        let security = self.config.dial.changes();
        let channel = match kept {
            Some(channel) => channel,
            None => match self.config.dial.dial(address).await {
                Ok(channel) => channel,
                Err(error) => return Ended::Lost { registered: false, loss: Loss::broken(chain(&error)), channel: None },
            },
        };
        let lost = |registered, loss: Loss, channel: Channel| {
            let channel = loss.answered.then_some(channel);
            Ended::Lost { registered, loss, channel }
        };
        let dispatcher = DispatcherClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let description = (self.config.describe)();
        let request = v1::SessionRequest { description: Some(description.to_wire()), session_id: self.session_id.clone() };
        let mut client = dispatcher.clone();
        let opened = limited("registering", async {
            let mut stream = client.session(request).await?.into_inner();
            let first = stream.message().await?.ok_or_else(|| Status::unavailable("the manager ended the session at once"))?;
            Ok((stream, first))
        });
        let (stream, first) = match opened.await {
            Ok(opened) => opened,
            Err(status) => return lost(false, Loss::of("registering", &status), channel),
        };
        self.session_id.clone_from(&first.session_id);
        self.state.send_modify(|state| {
            state.connected = true;
            state.problem.clear();
            address.clone_into(&mut state.manager);
        });
        self.engine.reach.connected();
        tracing::info!(manager = address, session = *self.session_id, "session with manager");
        failpoint!("agent.session.registered");
        self.message(first);
        self.remotes.observe(address, 10);
        // The manager may be another one, or have lost what it had not yet written.
        self.engine.reports.resend_all();
        let (config, engine, id) = (Arc::clone(&self.config), self.engine.clone(), self.session_id.clone());
        let mut period = *self.period;
        // Each ends with an error or never; dropping them is how the others end then.
        let going = farewell::said(self.farewell.clone());
        let cause = tokio::select! {
            () = describe::changed(&config.describe, &description, security) => Cause::Changed,
            farewell = going => Cause::Going(farewell),
            loss = heartbeats(dispatcher.clone(), id.clone(), &mut period) => Cause::Lost(loss),
            loss = assignments(dispatcher.clone(), id.clone(), &engine) => Cause::Lost(loss),
            loss = statuses(dispatcher.clone(), id.clone(), &engine) => Cause::Lost(loss),
            loss = logs::subscriptions(channel.clone(), address, &config, &engine) => Cause::Lost(loss),
            never = networks::follow(channel.clone(), &config, &engine.network) => match never {},
            never = tunnels::follow(channel.clone(), config.tunnels.clone()) => match never {},
            loss = self.messages(stream) => Cause::Lost(loss),
        };
        *self.period = period;
        match cause {
            Cause::Lost(loss) => lost(true, loss, channel),
            Cause::Going(farewell) => match farewell.tell(dispatcher, id).await {
                Ok(()) => Ended::Told,
                Err(status) => lost(true, Loss::of("last heartbeat", &status), channel),
            },
            Cause::Changed => {
                tracing::info!("the node changed; registering again");
                Ended::Reopen
            }
        }
    }

    async fn messages(&mut self, mut stream: tonic::Streaming<v1::SessionMessage>) -> Loss {
        loop {
            match stream.message().await {
                Ok(Some(message)) => self.message(message),
                Ok(None) => return Loss { reason: "the manager ended the session".into(), answered: true },
                Err(status) => return Loss::of("session", &status),
            }
        }
    }

    /// Takes in a session message: every one is complete (wire-behaviour 8.4).
    fn message(&mut self, message: v1::SessionMessage) {
        if !message.managers.is_empty() {
            let listed: Vec<(ManagerAddress, i64)> = message
                .managers
                .into_iter()
                .filter_map(|weighted| {
                    let peer = weighted.peer?;
                    Some((ManagerAddress { node_id: peer.node_id, addr: peer.addr }, weighted.weight))
                })
                .collect();
            self.remotes.replace(&listed);
        }
        let node = message.node.and_then(|node| match Node::from_wire(node) {
            Ok(node) => Some(Arc::new(node)),
            Err(error) => {
                tracing::warn!(%error, "the manager's view of this node is not understood");
                None
            }
        });
        self.state.send_modify(|state| {
            if node.is_some() {
                state.node = node;
            }
            if !message.root_ca.is_empty() {
                state.root_ca = message.root_ca;
            }
        });
    }
}

async fn heartbeats(mut dispatcher: Dispatcher, session_id: String, period: &mut Option<Duration>) -> Loss {
    loop {
        let request = v1::HeartbeatRequest { session_id: session_id.clone() };
        match limited("heartbeat", dispatcher.heartbeat(request)).await {
            Ok(answer) => {
                let given = answer.into_inner().period.and_then(|period| Duration::from_wire(period).ok());
                *period = given.filter(|given| !given.is_zero());
                tokio::time::sleep(period.unwrap_or(DEFAULT_HEARTBEAT)).await;
            }
            Err(status) => return Loss::of("heartbeat", &status),
        }
    }
}

async fn assignments(mut dispatcher: Dispatcher, session_id: String, engine: &Engine) -> Loss {
    loop {
        let mut request = Request::new(v1::AssignmentsRequest { session_id: session_id.clone() });
        // Of this stream: a genuine agent forgets to begin anew here (wire-behaviour 8.6).
        let mut reference = String::new();
        if let Some(name) = engine.applied.offer()
            && let Ok(value) = name.parse()
        {
            request.metadata_mut().insert(APPLIED, value);
            reference = name;
        }
        let mut stream = match limited("assignments", dispatcher.assignments(request)).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return Loss::of("assignments", &status),
        };
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Loss { reason: "the manager ended the assignments".into(), answered: true },
                Err(status) => return Loss::of("assignments", &status),
            };
            let gap = message.r#type == Type::Incremental as i32 && message.applies_to != reference;
            reference.clone_from(&message.results_in);
            // After a gap there is nothing that the next message could build on.
            let name = (!gap).then(|| message.results_in.clone());
            if !apply(sort(message), name, engine).await {
                return Loss::broken("the agent is stopping".into());
            }
            failpoint!("agent.assign.applied");
            if gap {
                tracing::warn!("an assignment message was missed; asking for all of them");
                break;
            }
        }
    }
}

async fn statuses(mut dispatcher: Dispatcher, session_id: String, engine: &Engine) -> Loss {
    loop {
        let batch = engine.reports.take(STATUSES).await;
        let mut unsent = PutBack { engine, batch: &batch, sent: false };
        let updates =
            batch.iter().map(|(task, status)| TaskStatusUpdate { task_id: task.to_string(), status: Some(status.to_wire()) }).collect();
        let request = v1::UpdateTaskStatusRequest { session_id: session_id.clone(), updates };
        failpoint!("agent.status.before_send");
        match limited("status report", dispatcher.update_task_status(request)).await {
            Ok(_) => unsent.sent = true,
            // The tasks are not there any more.
            Err(status) if status.code() == Code::NotFound => unsent.sent = true,
            Err(status) => return Loss::of("status report", &status),
        }
        engine.reports.told(&batch);
        failpoint!("agent.status.sent");
    }
}

/// Puts a batch back when the session ends in the middle of sending it.
struct PutBack<'a> {
    engine: &'a Engine,
    batch: &'a [(skep_types::TaskId, skep_types::TaskStatus)],
    sent: bool,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        if !self.sent {
            self.engine.reports.put_back(self.batch);
        }
    }
}
