//! The session with a manager: who it is held with, and what goes over it (wire-behaviour 8 and 9).
//!
//! One loop: wait the back-off, choose a manager, connect, register, then streams side by side until one of them
//! ends. Tasks do not notice any of it: assignments come in by the engine's channel, statuses wait in its reports.
//!
//! A manager that ends a session by itself, because it leads no more or its leader is gone, is asked again over the same
//! connection; one that breaks off or does not answer is left for another. What was applied last is offered to whoever comes
//! next, so that a change of leader re-sends nothing.

mod assignments; // what a message means for the engine
mod backoff; // 9.1
mod describe; // noticing that the node changed
mod dial; // TLS channels
mod farewell; // why this node goes
mod link; // one session
mod logs; // subscriptions to logs
mod networks; // that span nodes
mod remotes; // known managers and their weights
#[cfg(test)]
mod tests;
mod tunnels; // connections that managers ask for

pub use backoff::Backoff;
pub use dial::{Dial, DialError, TlsDial};
pub use remotes::ManagerAddress;
pub use tunnels::Answer;

/// What the cluster simulator runs of the session.
pub mod pure {
    pub use super::assignments::{Sorted, sort};
}

use crate::engine::Engine;
pub(crate) use farewell::Farewell;
use link::{Ended, Link};
use remotes::Remotes;
use skep_types::{Node, NodeDescription};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// A session that lasted for less counts as an attempt that failed.
const STOOD: Duration = Duration::from_secs(3);

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
    /// `<data>/agent/logs`
    pub logs_dir: PathBuf,
    pub node_id: String,
    /// Where other nodes reach this one with VXLAN; `None` = where its connections come from.
    pub data_path_addr: Option<IpAddr>,
    /// What is at this node's end of tunnels; `None` = it opens none.
    pub tunnels: Option<Arc<dyn Answer>>,
}

/// Holds a session with one manager after the other.
pub(crate) struct Session {
    config: Arc<SessionConfig>,
    engine: Engine,
    remotes: Remotes,
    /// A manager on this very node, which is preferred.
    local: watch::Receiver<Option<String>>,
    /// The last one; a manager that still knows it goes on with it.
    session_id: String,
    /// Between two heartbeats, as the last manager asked for.
    period: Option<Duration>,
    state: watch::Sender<SessionState>,
    /// Set once, when this node goes.
    farewell: watch::Receiver<Option<Farewell>>,
}

impl Session {
    pub(crate) fn new(
        config: SessionConfig,
        local: watch::Receiver<Option<String>>,
        engine: Engine,
        farewell: watch::Receiver<Option<Farewell>>,
    ) -> (Self, watch::Receiver<SessionState>) {
        let remotes = Remotes::load(&config.managers_file, &config.managers);
        let (state, reader) = watch::channel(SessionState::default());
        (Self { config: Arc::new(config), engine, remotes, local, session_id: String::new(), period: None, state, farewell }, reader)
    }

    /// Until `stop`, or until a manager was told that this node goes, or nobody is there to be told.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut lost_at = Instant::now();
        // A manager that answered but could not help, and the connection to it.
        let mut kept: Option<(String, Channel)> = None;
        self.engine.reach.lost(self.period);
        loop {
            let delay = backoff.delay(rand::random());
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.nobody_to_tell() => return,
                () = tokio::time::sleep(delay) => {}
            }
            let (address, channel) = match (kept.take(), self.choose()) {
                (Some((address, channel)), _) => (address, Some(channel)),
                (None, Some(address)) => (address, None),
                (None, None) => {
                    self.state.send_modify(|state| state.problem = "no manager is known; join a cluster".into());
                    backoff.failed(lost_at.elapsed());
                    continue;
                }
            };
            let began = Instant::now();
            let nobody_to_tell = self.nobody_to_tell();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                () = nobody_to_tell => return,
                ended = self.once(&address, channel) => ended,
            };
            self.engine.reach.lost(self.period);
            self.state.send_modify(|state| state.connected = false);
            let (registered, loss, channel) = match ended {
                Ended::Told => return,
                Ended::Reopen => {
                    backoff.reset();
                    continue;
                }
                Ended::Lost { registered, loss, channel } => (registered, loss, channel),
            };
            tracing::warn!(manager = address, reason = loss.reason, "no session");
            self.state.send_modify(|state| state.problem = format!("no session with manager {address}: {}", loss.reason));
            if registered && began.elapsed() > STOOD {
                backoff.lost();
                lost_at = Instant::now();
            } else {
                backoff.failed(lost_at.elapsed());
            }
            match channel {
                Some(channel) if backoff.same_again() => kept = Some((address, channel)),
                _ => self.remotes.observe(&address, -10),
            }
        }
    }

    /// Ends when this node goes while no session stands. One that left looks for a manager first, if any knows of it.
    fn nobody_to_tell(&self) -> impl Future<Output = ()> + use<> {
        let (mut farewell, state, is_known) = (self.farewell.clone(), self.state.subscribe(), !self.session_id.is_empty());
        async move {
            let is_set = farewell.wait_for(Option::is_some).await.is_ok_and(|farewell| *farewell == Some(Farewell::Stopping) || !is_known);
            if !is_set || state.borrow().connected {
                std::future::pending::<()>().await;
            }
        }
    }

    fn choose(&self) -> Option<String> {
        let failed_last = !self.state.borrow().problem.is_empty();
        match &*self.local.borrow() {
            // After a failure the others get a chance, too.
            Some(local) if !failed_last || self.remotes.is_empty() || rand::random::<bool>() => Some(local.clone()),
            _ => self.remotes.choose(rand::random()),
        }
    }

    async fn once(&mut self, address: &str, channel: Option<Channel>) -> Ended {
        let mut link = Link {
            config: Arc::clone(&self.config),
            engine: self.engine.clone(),
            remotes: &mut self.remotes,
            session_id: &mut self.session_id,
            state: &self.state,
            period: &mut self.period,
            farewell: self.farewell.clone(),
        };
        link.run(address, channel).await
    }
}
