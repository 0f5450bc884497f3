//! The agent, kept running: begun again when containerd was not there yet or a part of it ended.

use crate::config::Config;
use skep_agent::{
    Agent, AgentConfig, AgentDeps, AgentError, ContainerdConfig, LogWriterCommand, ManagerAddress, NetlbNetwork, NodeFacts, NodeImages,
    NodeSettings, TlsDial, machine_architecture, machine_hostname, node_description,
};
use skep_ca::SecurityConfig;
use skep_images::ImageStore;
use skep_netlb::Netlb;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The pause before the agent is begun again grows from the first to the second of these.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A task that does not end keeps a leaving node this long at most; what is left is removed at the next start.
const LEAVE_LIMIT: Duration = Duration::from_secs(60);

/// What every agent of this node is made of.
#[derive(Clone)]
pub struct AgentParts {
    pub config: Arc<Config>,
    pub security: SecurityConfig,
    pub images: ImageStore,
    pub network: Netlb,
    /// `host:port` of the manager beside it.
    pub local_manager: Option<String>,
}

impl AgentParts {
    async fn start(&self, stop: &CancellationToken) -> Result<Agent, AgentError> {
        let node_id = self.security.identity().map(|identity| identity.node_id().to_string()).unwrap_or_default();
        let facts = NodeFacts { id: node_id, hostname: machine_hostname(), os: "linux".into(), architecture: machine_architecture() };
        let config = &self.config;
        let mut containerd = ContainerdConfig::new(config.containerd.clone(), config.data_dir.clone(), config.run_dir.clone(), facts);
        containerd.namespace.clone_from(&config.containerd_namespace);
        containerd.cgroup_parent.clone_from(&config.cgroup_parent);
        let settings = NodeSettings {
            engine_labels: config.labels.clone(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            ..NodeSettings::default()
        };
        let security = self.security.clone();
        let deps = AgentDeps {
            dial: Arc::new(TlsDial::new(&self.security)),
            describe: Arc::new(move || node_description(&settings, security.tls_info().map(tls_info))),
            images: Arc::new(NodeImages::new(self.images.clone())),
            network: Arc::new(NetlbNetwork::new(self.network.clone())),
        };
        let config = AgentConfig {
            containerd,
            log_writer: log_writer(&config.run_dir),
            managers: self.local_manager.iter().map(|addr| ManagerAddress { node_id: String::new(), addr: addr.clone() }).collect(),
            local_manager: self.local_manager.clone(),
        };
        Agent::start(config, deps, stop).await
    }

    /// Removes every task of an earlier cluster, with all it had but named volumes: what is in them is the user's.
    /// Repeats without harm.
    pub async fn clear(&self) {
        let records = self.config.data_dir.join("agent");
        if !debris(&records).is_empty() {
            let stop = CancellationToken::new();
            let cleared = tokio::time::timeout(LEAVE_LIMIT, async { self.start(&stop).await?.leave().await }).await;
            stop.cancel();
            match cleared {
                Ok(Ok(())) => {
                    for path in debris(&records) {
                        if let Err(error) = remove(&path) {
                            tracing::warn!(%error, path = %path.display(), "could not remove");
                        }
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "tasks of an earlier cluster may be left; the next start tries again")
                }
                Err(_) => tracing::warn!("tasks of an earlier cluster take too long to end; the next start tries again"),
            }
        }
        if let Err(error) = self.network.remove_everything().await {
            tracing::warn!(error = %chain(&error), "network objects may be left; the next start tries again");
        }
    }
}

/// What an agent of an earlier cluster left in its directory, other than volumes.
fn debris(records: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(records).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name() != "volumes").map(|entry| entry.path()).collect()
}

fn remove(path: &std::path::Path) -> std::io::Result<()> {
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

/// This very program; the path stays right when the file is replaced by an upgrade.
fn log_writer(run_dir: &std::path::Path) -> LogWriterCommand {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("skepd"));
    LogWriterCommand { program, args: vec!["log-writer".into(), "--run-dir".into(), run_dir.into()], envs: Vec::new() }
}

fn tls_info(info: skep_ca::TlsInfo) -> skep_types::TlsInfo {
    skep_types::TlsInfo {
        trust_root: info.trust_root,
        cert_issuer_subject: info.cert_issuer_subject,
        cert_issuer_public_key: info.cert_issuer_public_key,
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text += &format!(": {deeper}");
        cause = deeper.source();
    }
    text
}

/// What the keeper is told.
enum Order {
    Stop,
    Leave(oneshot::Sender<()>),
}

/// What there is to know of the agent.
#[derive(Debug, Clone, Default)]
pub struct AgentState {
    pub connected: bool,
    /// Why it does not work, for people; empty while it does.
    pub problem: String,
    pub runtime: String,
}

/// Owner of the task that owns the agent.
pub struct AgentKeeper {
    orders: mpsc::Sender<Order>,
    state: Arc<Mutex<AgentState>>,
    task: JoinHandle<()>,
}

impl AgentKeeper {
    /// Returns at once: a containerd that is not there yet does not keep the manager from its work.
    pub fn start(parts: AgentParts) -> Self {
        let (orders, inbox) = mpsc::channel(1);
        let state = Arc::new(Mutex::new(AgentState::default()));
        let task = tokio::spawn(keep(parts, inbox, Arc::clone(&state)));
        Self { orders, state, task }
    }

    pub fn state(&self) -> AgentState {
        self.state.lock().expect("no panic while held").clone()
    }

    /// Ends the agent and leaves the tasks running.
    pub async fn stop(self) {
        let _ = self.orders.send(Order::Stop).await;
        let _ = self.task.await;
    }

    /// Ends the agent and its tasks, as far as that can be done in time.
    pub async fn leave(self) {
        let (done, waiter) = oneshot::channel();
        let _ = self.orders.send(Order::Leave(done)).await;
        if tokio::time::timeout(LEAVE_LIMIT, waiter).await.is_err() {
            tracing::warn!("some tasks take too long to end; they are removed at the next start");
            self.task.abort();
        }
        let _ = self.task.await;
    }
}

async fn keep(parts: AgentParts, mut orders: mpsc::Receiver<Order>, state: Arc<Mutex<AgentState>>) {
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let mut pause = FIRST_PAUSE;
    loop {
        // Starting may wait for containerd; an order ends that.
        let started = tokio::select! {
            started = parts.start(&stop) => started,
            order = orders.recv() => return give_up(order),
        };
        match started {
            Ok(agent) => {
                pause = FIRST_PAUSE;
                state.lock().expect("no panic while held").runtime = agent.runtime_version().await;
                let Some(problem) = watch_over(agent, &mut orders, &state).await else { return };
                tracing::warn!(%problem, "the agent ended and is begun again");
                *state.lock().expect("no panic while held") = AgentState { problem, ..AgentState::default() };
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!(error = %problem, "the agent cannot start yet");
                state.lock().expect("no panic while held").problem = problem;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            order = orders.recv() => return give_up(order),
        }
    }
}

/// There is no agent: tasks, if there are any, are removed at the next start.
fn give_up(order: Option<Order>) {
    if let Some(Order::Leave(done)) = order {
        let _ = done.send(());
    }
}

/// Until an order comes (`None`) or the agent fails (why).
async fn watch_over(mut agent: Agent, orders: &mut mpsc::Receiver<Order>, state: &Mutex<AgentState>) -> Option<String> {
    let mut session = agent.session();
    loop {
        {
            let known = session.borrow_and_update();
            let mut state = state.lock().expect("no panic while held");
            state.connected = known.connected;
            state.problem.clone_from(&known.problem);
        }
        tokio::select! {
            changed = session.changed() => {
                if changed.is_err() {
                    return Some("the session ended".into());
                }
            }
            error = agent.failed() => {
                let text = chain(&error);
                agent.stop().await;
                return Some(text);
            }
            order = orders.recv() => {
                match order {
                    Some(Order::Leave(done)) => {
                        if let Err(error) = agent.leave().await {
                            tracing::warn!(error = %chain(&error), "some tasks may be left; they are removed at the next start");
                        }
                        let _ = done.send(());
                    }
                    Some(Order::Stop) | None => agent.stop().await,
                }
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_no_debris_of_a_cluster_that_was_left() {
        let dir = tempfile::tempdir().unwrap();
        assert!(debris(&dir.path().join("none")).is_empty());
        for name in ["volumes/data/_data", "tasks", "logs/x"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("managers.json"), "").unwrap();
        let mut found = debris(dir.path());
        found.sort();
        assert_eq!(found, ["logs", "managers.json", "tasks"].map(|name| dir.path().join(name)));
        for path in found {
            remove(&path).unwrap();
        }
        assert!(debris(dir.path()).is_empty());
        assert!(dir.path().join("volumes/data/_data").is_dir());
    }
}
