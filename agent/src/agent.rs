//! The agent of one node, put together: engine, containerd's events, log writer, session.

use crate::attachment::Attachments;
use crate::board::Board;
use crate::containerd::{ContainerdConfig, ContainerdExecutor, Story};
use crate::containers::Containers;
use crate::engine::Engine;
use crate::error::AgentError;
use crate::executor::{Executor, Images, Network};
use crate::locals::Locals;
use crate::logs::{LogWriter, LogWriterCommand};
use crate::places::{Allocator, ManagerAllocator, Places};
use crate::session::{Answer, Describe, Dial, Farewell, ManagerAddress, Session, SessionConfig, SessionState};
use crate::worker::Assign;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How an agent is set up.
pub struct AgentConfig {
    pub containerd: ContainerdConfig,
    /// skepd's own program with its hidden subcommand.
    pub log_writer: LogWriterCommand,
    /// From configuration or a join command.
    pub managers: Vec<ManagerAddress>,
    /// `host:port` of a manager on this very node.
    pub local_manager: Option<String>,
    /// Where other nodes reach this one with VXLAN; `None` = where its connections come from.
    pub data_path_addr: Option<IpAddr>,
}

/// What an agent works with.
pub struct AgentDeps {
    pub dial: Arc<dyn Dial>,
    pub describe: Describe,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
    /// What managers reach on this node by tunnels; `None` = nothing.
    pub tunnels: Option<Arc<dyn Answer>>,
}

/// A running agent. Dropping it stops the agent, not the tasks.
pub struct Agent {
    engine: Engine,
    executor: ContainerdExecutor,
    containers: Containers,
    session: watch::Receiver<SessionState>,
    local_manager: watch::Sender<Option<String>>,
    farewell: watch::Sender<Option<Farewell>>,
    work: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Agent {
    /// Adopts what an earlier agent left on this node, then begins to look for a manager. Returns when the node's tasks
    /// are known.
    ///
    /// # Errors
    /// If the directories cannot be used or containerd cannot say what runs.
    pub async fn start(config: AgentConfig, deps: AgentDeps, stop: &CancellationToken) -> Result<Self, AgentError> {
        let stop = stop.child_token();
        let data_dir = config.containerd.data_dir.clone();
        let run_dir = config.containerd.run_dir.clone();
        let logs_dir = config.containerd.logs_dir();
        let node_id = config.containerd.node.id.clone();
        let logs = LogWriter::new(config.containerd.run_dir.join("logs.sock"), config.log_writer);
        let stories = config.containerd.clone();
        let board = Board::new(move |task| Story::load(&stories, task).map(|story| story.mounts).unwrap_or_default());
        let executor = ContainerdExecutor::new(config.containerd, deps.images, Arc::clone(&deps.network), logs.clone(), board.clone());
        let executor = executor.map_err(AgentError::Survey)?;
        let mut work = JoinSet::new();
        let (listener, token) = (executor.clone(), stop.clone());
        work.spawn(async move {
            listener.listen(token).await;
            "containerd's events"
        });
        let (cleaner, token) = (executor.clone(), stop.clone());
        work.spawn(async move {
            cleaner.clear_lost_shims(token).await;
            "clearing of lost shims"
        });
        let token = stop.clone();
        work.spawn(async move {
            logs.keep(token).await;
            "log writer"
        });
        let (network, token) = (Arc::clone(&deps.network), stop.clone());
        work.spawn(async move {
            network.keep(token).await;
            "network"
        });
        let (places, allocator) = (Places::default(), Arc::new(ManagerAllocator::new(Arc::clone(&deps.dial))));
        let asking: Arc<dyn Allocator> = Arc::clone(&allocator) as _;
        let locals =
            Locals::open(&data_dir, executor.clone(), Arc::clone(&deps.network), board.clone(), (places.clone(), asking), stop.clone())?;
        let runner = Arc::new(executor.clone());
        let erased: Arc<dyn Executor> = Arc::new(Attachments::new(runner, Arc::clone(&deps.network), &data_dir, &run_dir, places));
        let (engine, run) = Engine::start_with(&data_dir, &node_id, erased, deps.network, board, stop.clone()).await?;
        work.spawn(async move {
            run.await;
            "tasks"
        });
        locals.recover();
        let containers = Containers::new(executor.clone(), engine.clone(), locals.clone(), stop.clone());
        work.spawn(async move {
            locals.keep().await;
            "containers that are no tasks"
        });
        let keeping = containers.clone();
        work.spawn(async move {
            keeping.keep().await;
            "containers' visitors"
        });
        let session = SessionConfig {
            dial: deps.dial,
            describe: deps.describe,
            managers_file: data_dir.join("agent/managers.json"),
            managers: config.managers,
            logs_dir,
            node_id,
            data_path_addr: config.data_path_addr,
            tunnels: deps.tunnels,
        };
        let (local_manager, local) = watch::channel(config.local_manager);
        let (farewell, going) = watch::channel(None);
        let (session, state) = Session::new(session, local, engine.clone(), going);
        allocator.follow(state.clone());
        let token = stop.clone();
        work.spawn(async move {
            session.run(token).await;
            "session"
        });
        Ok(Self { engine, executor, containers, session: state, local_manager, farewell, work, stop })
    }

    /// What is known of the session with a manager.
    #[must_use]
    pub fn session(&self) -> watch::Receiver<SessionState> {
        self.session.clone()
    }

    /// This node became a manager (`host:port`), or is none any more. The next session prefers it; the present one stays.
    pub fn set_local_manager(&self, address: Option<String>) {
        self.local_manager.send_replace(address);
    }

    /// The tasks and their statuses.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The containers of its tasks, for people.
    #[must_use]
    pub fn containers(&self) -> &Containers {
        &self.containers
    }

    /// Such as `containerd 1.6.20`.
    pub async fn runtime_version(&self) -> String {
        match self.executor.engine_version().await {
            Ok(version) => format!("containerd {version}"),
            Err(_) => "containerd (not reachable)".into(),
        }
    }

    /// Stops and removes every task and takes no new ones (wire-behaviour 9.3, leaving), tells a manager if one can be found,
    /// and ends the agent.
    ///
    /// # Errors
    /// If the agent ended before it was done.
    pub async fn leave(self) -> Result<(), AgentError> {
        self.remove_tasks().await?;
        self.part(Farewell::Left).await;
        Ok(())
    }

    /// As [`Agent::leave`] in a node that is in no cluster any more: nobody is told.
    ///
    /// # Errors
    /// If the agent ended before it was done.
    pub async fn clear(self) -> Result<(), AgentError> {
        self.remove_tasks().await?;
        self.stop().await;
        Ok(())
    }

    async fn remove_tasks(&self) -> Result<(), AgentError> {
        let (done, waiter) = oneshot::channel();
        let ended = |_| AgentError::PartEnded("tasks");
        self.engine.assign.send(Assign::Leave(done)).await.map_err(|_| AgentError::PartEnded("tasks"))?;
        waiter.await.map_err(ended)?;
        // They are as little without this node's agent as tasks are.
        self.containers.remove_locals().await;
        Ok(())
    }

    /// Tells the manager that this node's daemon stops, if a session stands; ends the agent and leaves the tasks running.
    pub async fn shut_down(self) {
        self.part(Farewell::Stopping).await;
    }

    async fn part(mut self, farewell: Farewell) {
        self.farewell.send_replace(Some(farewell));
        // The session's end shows by its last change.
        let told = async { while self.session.changed().await.is_ok() {} };
        if tokio::time::timeout(farewell.patience(), told).await.is_err() {
            tracing::info!("no manager could be told that this node goes; they will notice");
        }
        self.stop().await;
    }

    /// Ends the agent and leaves the tasks running; managers are told nothing.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.work.join_next().await.is_some() {}
    }

    /// Waits until a part ends that should not; pending as long as all is well.
    pub async fn failed(&mut self) -> AgentError {
        match self.work.join_next().await {
            Some(Ok(part)) => AgentError::PartEnded(part),
            Some(Err(_)) | None => AgentError::PartEnded("agent"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
