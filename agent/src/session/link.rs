//! One session with one manager, from the connection to its end.

use super::assignments::{apply, sort};
use super::remotes::{ManagerAddress, Remotes};
use super::{SessionConfig, SessionState, describe, logs};
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
use tonic::{Code, Status};

/// For a unary call and for the first message of a session (wire-behaviour 9.1).
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// As dockerd's default, if a manager names no period.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);
/// Statuses in one call: a message must stay well below 4 MiB.
const STATUSES: usize = 1024;
/// The first assignment message holds all tasks, secrets and configs of the node (wire-behaviour 2.1).
const MAX_MESSAGE: usize = i32::MAX as usize;

/// Why a session ended.
#[derive(Debug)]
pub enum Ended {
    /// By our own wish, to be opened again at once: the node changed.
    Reopen,
    Lost {
        /// Whether the manager had accepted this node.
        registered: bool,
        reason: String,
    },
}

/// What one session works with.
pub struct Link<'a> {
    pub config: Arc<SessionConfig>,
    pub engine: Engine,
    pub remotes: &'a mut Remotes,
    pub session_id: &'a mut String,
    pub state: &'a watch::Sender<SessionState>,
}

type Dispatcher = DispatcherClient<Channel>;

fn words(what: &str, status: &Status) -> String {
    format!("{what}: {}", if status.message().is_empty() { status.code().description() } else { status.message() })
}

async fn limited<T>(what: &str, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL_LIMIT, call).await.map_err(|_| Status::deadline_exceeded(format!("{what} took too long")))?
}

impl Link<'_> {
    pub async fn run(&mut self, address: &str) -> Ended {
        let lost = |registered| move |reason: String| Ended::Lost { registered, reason };
        let channel = match self.config.dial.dial(address).await {
            Ok(channel) => channel,
            Err(error) => return lost(false)(chain(&error)),
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
            Err(status) => return lost(false)(words("registering", &status)),
        };
        self.session_id.clone_from(&first.session_id);
        self.state.send_modify(|state| {
            state.connected = true;
            state.problem.clear();
            address.clone_into(&mut state.manager);
        });
        tracing::info!(manager = address, session = *self.session_id, "session with manager");
        failpoint!("agent.session.registered");
        self.message(first);
        self.remotes.observe(address, 10);
        // The manager may be another one, or have lost what it had not yet written.
        self.engine.reports.resend_all();
        let (config, engine, id) = (Arc::clone(&self.config), self.engine.clone(), self.session_id.clone());
        // Each ends with an error or never; dropping them is how the others end then.
        let reason = tokio::select! {
            () = describe::changed(&config.describe, &description) => {
                tracing::info!("the node changed; registering again");
                return Ended::Reopen;
            }
            reason = heartbeats(dispatcher.clone(), id.clone()) => reason,
            reason = assignments(dispatcher.clone(), id.clone(), &engine) => reason,
            reason = statuses(dispatcher.clone(), id.clone(), &engine) => reason,
            reason = logs::subscriptions(channel, address, &config, &engine) => reason,
            reason = self.messages(stream) => reason,
        };
        lost(true)(reason)
    }

    async fn messages(&mut self, mut stream: tonic::Streaming<v1::SessionMessage>) -> String {
        loop {
            match stream.message().await {
                Ok(Some(message)) => self.message(message),
                Ok(None) => return "the manager ended the session".into(),
                Err(status) => return words("session", &status),
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

async fn heartbeats(mut dispatcher: Dispatcher, session_id: String) -> String {
    loop {
        let request = v1::HeartbeatRequest { session_id: session_id.clone() };
        match limited("heartbeat", dispatcher.heartbeat(request)).await {
            Ok(answer) => {
                let period = answer.into_inner().period.and_then(|period| Duration::from_wire(period).ok());
                tokio::time::sleep(period.filter(|period| !period.is_zero()).unwrap_or(DEFAULT_HEARTBEAT)).await;
            }
            Err(status) => return words("heartbeat", &status),
        }
    }
}

async fn assignments(mut dispatcher: Dispatcher, session_id: String, engine: &Engine) -> String {
    loop {
        let request = v1::AssignmentsRequest { session_id: session_id.clone() };
        let mut stream = match limited("assignments", dispatcher.assignments(request)).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return words("assignments", &status),
        };
        // Of this stream: a genuine agent forgets to begin anew here (wire-behaviour 8.6).
        let mut reference = String::new();
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return "the manager ended the assignments".into(),
                Err(status) => return words("assignments", &status),
            };
            let gap = message.r#type == Type::Incremental as i32 && message.applies_to != reference;
            reference.clone_from(&message.results_in);
            if !apply(sort(message), engine).await {
                return "the agent is stopping".into();
            }
            failpoint!("agent.assign.applied");
            if gap {
                tracing::warn!("an assignment message was missed; asking for all of them");
                break;
            }
        }
    }
}

async fn statuses(mut dispatcher: Dispatcher, session_id: String, engine: &Engine) -> String {
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
            Err(status) => return words("status report", &status),
        }
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
