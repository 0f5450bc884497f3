//! The agent, kept running: begun again when containerd was not there yet or a part of it ended.

use super::{AgentParts, LEAVE_LIMIT, chain};
use skep_agent::{Agent, Containers, SessionState};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The pause before the agent is begun again grows from the first to the second of these.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the keeper is told.
enum Order {
    Stop,
    Leave(oneshot::Sender<()>),
    /// Which manager is beside the agent now.
    Beside(Option<String>),
}

/// What there is to know of the agent.
#[derive(Debug, Clone, Default)]
pub struct AgentState {
    /// Why it does not work, for people; empty while it does.
    pub problem: String,
    pub runtime: String,
    /// While it runs.
    pub containers: Option<Containers>,
    pub session: SessionState,
}

/// Owner of the task that owns the agent.
pub struct AgentKeeper {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<AgentState>,
    task: JoinHandle<()>,
}

impl AgentKeeper {
    /// Returns at once: a containerd that is not there yet does not keep the manager from its work.
    pub fn start(parts: AgentParts) -> Self {
        // Full: whoever gives an order waits for the one before it.
        let (orders, inbox) = mpsc::channel(1);
        let (publish, state) = watch::channel(AgentState::default());
        let task = tokio::spawn(keep(parts, inbox, publish));
        Self { orders, state, task }
    }

    pub fn state(&self) -> watch::Receiver<AgentState> {
        self.state.clone()
    }

    /// The manager beside the agent came or went.
    pub async fn beside(&self, manager: Option<String>) {
        let _ = self.orders.send(Order::Beside(manager)).await;
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

async fn keep(mut parts: AgentParts, mut orders: mpsc::Receiver<Order>, state: watch::Sender<AgentState>) {
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let mut pause = FIRST_PAUSE;
    loop {
        // Starting may wait for containerd; an order ends that.
        let started = tokio::select! {
            started = parts.start(&stop) => started,
            order = orders.recv() => match without_agent(order) {
                Some(manager) => {
                    parts.local_manager = manager;
                    continue;
                }
                None => return,
            },
        };
        match started {
            Ok(agent) => {
                pause = FIRST_PAUSE;
                let runtime = agent.runtime_version().await;
                let containers = agent.containers().clone();
                state.send_modify(|state| (state.runtime, state.containers) = (runtime, Some(containers)));
                let Some(problem) = watch_over(agent, &mut parts.local_manager, &mut orders, &state).await else { return };
                tracing::warn!(%problem, "the agent ended and is begun again");
                state.send_modify(|state| {
                    (state.problem, state.containers) = (problem, None);
                    state.session.connected = false;
                });
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!(error = %problem, "the agent cannot start yet");
                state.send_modify(|state| state.problem = problem);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            order = orders.recv() => match without_agent(order) {
                Some(manager) => parts.local_manager = manager,
                None => return,
            },
        }
    }
}

/// What an order means while there is no agent: the manager beside the next one, or the end. Tasks, if there are any, are
/// removed at the next start.
fn without_agent(order: Option<Order>) -> Option<Option<String>> {
    match order {
        Some(Order::Beside(manager)) => Some(manager),
        Some(Order::Leave(done)) => {
            let _ = done.send(());
            None
        }
        Some(Order::Stop) | None => None,
    }
}

/// Until an order ends it (`None`) or the agent fails (why).
async fn watch_over(
    mut agent: Agent,
    beside: &mut Option<String>,
    orders: &mut mpsc::Receiver<Order>,
    state: &watch::Sender<AgentState>,
) -> Option<String> {
    let mut session = agent.session();
    loop {
        let mut known = session.borrow_and_update().clone();
        state.send_modify(|state| {
            state.problem.clone_from(&known.problem);
            // A session that has just begun to look for a manager does not make forgotten what the last one was told.
            if known.node.is_none() {
                known.node.clone_from(&state.session.node);
            }
            state.session = known;
        });
        tokio::select! {
            changed = session.changed() => {
                if changed.is_err() {
                    agent.stop().await;
                    return Some("the session ended".into());
                }
            }
            error = agent.failed() => {
                let text = chain(&error);
                agent.stop().await;
                return Some(text);
            }
            order = orders.recv() => match order {
                Some(Order::Beside(manager)) => {
                    agent.set_local_manager(manager.clone());
                    *beside = manager;
                }
                Some(Order::Leave(done)) => {
                    if let Err(error) = agent.leave().await {
                        tracing::warn!(error = %chain(&error), "some tasks may be left; they are removed at the next start");
                    }
                    let _ = done.send(());
                    return None;
                }
                Some(Order::Stop) | None => {
                    agent.shut_down().await;
                    return None;
                }
            },
        }
    }
}
