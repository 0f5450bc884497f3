//! The session with a manager: who it is held with, and what goes over it (wire-behaviour 8 and 9).
//!
//! One loop: wait the back-off, choose a manager, connect, register, then four streams side by side until one of them
//! ends. Tasks do not notice any of it: assignments come in by the engine's channel, statuses wait in its reports.

mod assignments; // what a message means for the engine
mod backoff; // 9.1
mod describe; // noticing that the node changed
mod dial; // TLS channels
mod link; // one session
mod logs; // subscriptions to logs
mod remotes; // known managers and their weights

pub use dial::{Dial, DialError, TlsDial};
pub use remotes::ManagerAddress;

use crate::engine::Engine;
use backoff::Backoff;
use link::{Ended, Link};
use remotes::Remotes;
use skep_types::{Node, NodeDescription};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Says what this node is at the moment.
pub type Describe = Arc<dyn Fn() -> NodeDescription + Send + Sync>;

/// What the rest of skepd may want to know of the session.
#[derive(Debug, Clone, Default)]
pub struct SessionState {
    /// Registered with a manager right now.
    pub connected: bool,
    /// The manager of the present or last session.
    pub manager: String,
    /// This node as the manager has it: wanted role, certificate state.
    pub node: Option<Arc<Node>>,
    /// The cluster's roots, PEM; empty before the first session.
    pub root_ca: Vec<u8>,
    /// Why there is no session, for people; empty while there is one.
    pub problem: String,
}

/// What a session needs.
pub struct SessionConfig {
    pub dial: Arc<dyn Dial>,
    pub describe: Describe,
    /// `<data>/agent/managers.json`
    pub managers_file: PathBuf,
    /// Known from configuration or a join command.
    pub managers: Vec<ManagerAddress>,
    /// A manager on this very node, which is preferred.
    pub local_manager: Option<String>,
    /// `<data>/agent/logs`
    pub logs_dir: PathBuf,
    pub node_id: String,
}

/// Holds a session with one manager after the other.
pub(crate) struct Session {
    config: Arc<SessionConfig>,
    engine: Engine,
    remotes: Remotes,
    /// The last one; a manager that still knows it goes on with it.
    session_id: String,
    state: watch::Sender<SessionState>,
}

impl Session {
    pub(crate) fn new(config: SessionConfig, engine: Engine) -> (Self, watch::Receiver<SessionState>) {
        let remotes = Remotes::load(&config.managers_file, &config.managers);
        let (state, reader) = watch::channel(SessionState::default());
        (Self { config: Arc::new(config), engine, remotes, session_id: String::new(), state }, reader)
    }

    /// Until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let delay = backoff.delay(rand::random());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            let Some(address) = self.choose() else {
                self.state.send_modify(|state| state.problem = "no manager is known; join a cluster".into());
                backoff.failed();
                continue;
            };
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.once(&address) => ended,
            };
            self.state.send_modify(|state| state.connected = false);
            match ended {
                Ended::Reopen => backoff.reset(),
                Ended::Lost { registered, reason } => {
                    tracing::warn!(manager = address, reason, "session lost");
                    self.remotes.observe(&address, -10);
                    if registered {
                        backoff.reset();
                    }
                    backoff.failed();
                    self.state.send_modify(|state| state.problem = format!("no session with manager {address}: {reason}"));
                }
            }
        }
    }

    fn choose(&mut self) -> Option<String> {
        let failed_last = !self.state.borrow().problem.is_empty();
        match &self.config.local_manager {
            // After a failure the others get a chance, too.
            Some(local) if !failed_last || self.remotes.is_empty() || rand::random::<bool>() => Some(local.clone()),
            _ => self.remotes.choose(rand::random()),
        }
    }

    async fn once(&mut self, address: &str) -> Ended {
        let (config, engine) = (Arc::clone(&self.config), self.engine.clone());
        let mut link = Link { config, engine, remotes: &mut self.remotes, session_id: &mut self.session_id, state: &self.state };
        link.run(address).await
    }
}
