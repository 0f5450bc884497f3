//! Brings lines from the agents that have them to the clients that asked.
//!
//! Nothing is stored. Each subscription has one bounded channel: when the client reads slowly, publishing agents wait, down to
//! HTTP/2's flow control, and no line is dropped. Agents learn of subscriptions by comparing: a listener looks at what there
//! is and says what it has not said, so a wake-up may be lost or doubled without harm.

use super::selection::{Selection, Selector};
use skep_proto::v1;
use skep_types::{NodeId, SubscriptionId, Task};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Batches that wait for a slow client. When full, the agents that publish wait.
const BATCHES_IN_FLIGHT: usize = 16;

/// All subscriptions and listeners. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Broker(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    subscriptions: BTreeMap<SubscriptionId, Arc<Subscription>>,
    /// Streams of each node that wait for subscriptions.
    listeners: HashMap<NodeId, Vec<Arc<Notify>>>,
    /// Rung when a node begins to listen.
    arrived: Arc<Notify>,
}

/// One client's request for lines.
pub(crate) struct Subscription {
    pub id: SubscriptionId,
    selector: Selector,
    follow: bool,
    /// As agents are told.
    message: v1::SubscriptionMessage,
    lines: mpsc::Sender<Vec<v1::LogMessage>>,
    progress: Mutex<Progress>,
    /// Rung when the last node is done.
    finished: Notify,
}

#[derive(Default)]
struct Progress {
    /// Nodes that were told and have not begun to publish.
    waiting: BTreeSet<NodeId>,
    /// Streams that publish now.
    publishing: BTreeMap<NodeId, usize>,
    /// All nodes that take part.
    nodes: BTreeSet<NodeId>,
    problems: Vec<String>,
}

impl Progress {
    fn is_finished(&self) -> bool {
        self.waiting.is_empty() && self.publishing.is_empty()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    /// Opens a subscription and tells the nodes.
    pub(crate) fn subscribe(
        &self,
        id: SubscriptionId,
        selector: Selector,
        request: v1::SubscribeLogsRequest,
        selection: Selection,
    ) -> Reader {
        let follow = request.options.as_ref().is_some_and(|options| options.follow);
        let (lines, reader) = mpsc::channel(BATCHES_IN_FLIGHT);
        // Genuine agents read both without a check (spec wire-behaviour 1).
        let message = v1::SubscriptionMessage {
            id: id.to_string(),
            selector: Some(request.selector.unwrap_or_default()),
            options: Some(request.options.unwrap_or_default()),
            close: false,
        };
        let mut state = lock(&self.0);
        let mut progress =
            Progress { nodes: selection.nodes.clone(), waiting: selection.nodes, problems: selection.problems, ..Progress::default() };
        if !follow {
            let absent: Vec<NodeId> = progress.waiting.iter().filter(|node| !state.listeners.contains_key(*node)).cloned().collect();
            for node in absent {
                progress.waiting.remove(&node);
                progress.problems.push(format!("node {node} is not available"));
            }
        }
        let subscription = Arc::new(Subscription {
            id: id.clone(),
            selector,
            follow,
            message,
            lines,
            progress: Mutex::new(progress),
            finished: Notify::new(),
        });
        state.wake(&subscription);
        state.subscriptions.insert(id, subscription.clone());
        drop(state);
        Reader { broker: self.clone(), subscription, lines: reader }
    }

    /// Waits until all these nodes listen, but no longer than `limit`.
    pub(crate) async fn all_listen(&self, nodes: &BTreeSet<NodeId>, limit: Duration) {
        let arrived = lock(&self.0).arrived.clone();
        let all = async {
            loop {
                let next = arrived.notified();
                tokio::pin!(next);
                // From now on no arrival is missed.
                next.as_mut().enable();
                if nodes.iter().all(|node| lock(&self.0).listeners.contains_key(node)) {
                    return;
                }
                next.await;
            }
        };
        // Who is not there then is named at the end of the lines.
        let _ = tokio::time::timeout(limit, all).await;
    }

    /// A stream of what this node is to publish.
    pub(crate) fn listen(&self, node: NodeId) -> Listener {
        let wake = Arc::new(Notify::new());
        {
            let mut state = lock(&self.0);
            state.listeners.entry(node.clone()).or_default().push(wake.clone());
            state.arrived.notify_waiters();
        }
        // What already exists is said first.
        wake.notify_one();
        Listener { broker: self.clone(), node, wake, told: BTreeSet::new(), queue: VecDeque::new() }
    }

    /// A node begins to publish for a subscription; `None` if there is none of this id.
    pub(crate) fn publish(&self, id: &SubscriptionId, node: &NodeId) -> Option<Publisher> {
        let subscription = lock(&self.0).subscriptions.get(id)?.clone();
        {
            let mut progress = lock(&subscription.progress);
            progress.waiting.remove(node);
            *progress.publishing.entry(node.clone()).or_default() += 1;
        }
        Some(Publisher { subscription, node: node.clone(), closed: false })
    }

    /// A task got a node: subscriptions that follow it ask that node too.
    pub(crate) fn task_assigned(&self, task: &Task) {
        let Some(node) = &task.node_id else { return };
        let state = lock(&self.0);
        for subscription in state.subscriptions.values().filter(|subscription| subscription.follow && subscription.selector.covers(task)) {
            let is_new = lock(&subscription.progress).nodes.insert(node.clone());
            if is_new {
                state.wake_node(node);
            }
        }
    }

    /// Whether anything follows; otherwise nobody needs to hear of tasks.
    pub(crate) fn has_subscriptions(&self) -> bool {
        !lock(&self.0).subscriptions.is_empty()
    }
}

impl State {
    fn wake(&self, subscription: &Subscription) {
        let nodes = lock(&subscription.progress).nodes.clone();
        for node in &nodes {
            self.wake_node(node);
        }
    }

    fn wake_node(&self, node: &NodeId) {
        for listener in self.listeners.get(node).into_iter().flatten() {
            listener.notify_one();
        }
    }
}

/// The client's end. Dropping it closes the subscription at the agents.
pub(crate) struct Reader {
    broker: Broker,
    subscription: Arc<Subscription>,
    lines: mpsc::Receiver<Vec<v1::LogMessage>>,
}

impl Reader {
    /// The next lines; at the end of a subscription that does not follow, `Ok(None)` or what is missing, for people.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<v1::LogMessage>>, String> {
        loop {
            let finished = self.subscription.finished.notified();
            if !self.subscription.follow && lock(&self.subscription.progress).is_finished() {
                // Publishers are done only after their last line was taken into the channel.
                return match self.lines.try_recv() {
                    Ok(lines) => Ok(Some(lines)),
                    Err(_) => self.verdict(),
                };
            }
            tokio::select! {
                Some(lines) = self.lines.recv() => return Ok(Some(lines)),
                () = finished => {}
            }
        }
    }

    fn verdict(&self) -> Result<Option<Vec<v1::LogMessage>>, String> {
        let progress = lock(&self.subscription.progress);
        if progress.problems.is_empty() { Ok(None) } else { Err(progress.problems.join(", ")) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = lock(&self.broker.0);
        state.subscriptions.remove(&self.subscription.id);
        state.wake(&self.subscription);
    }
}

/// The agent's end: subscriptions as they come and go.
pub(crate) struct Listener {
    broker: Broker,
    node: NodeId,
    wake: Arc<Notify>,
    told: BTreeSet<SubscriptionId>,
    queue: VecDeque<v1::SubscriptionMessage>,
}

impl Listener {
    /// The next message for the agent; waits until there is one.
    pub(crate) async fn next(&mut self) -> v1::SubscriptionMessage {
        loop {
            if let Some(message) = self.queue.pop_front() {
                return message;
            }
            self.wake.notified().await;
            self.compare();
        }
    }

    fn compare(&mut self) {
        let state = lock(&self.broker.0);
        let wanted: BTreeMap<&SubscriptionId, &Arc<Subscription>> =
            state.subscriptions.iter().filter(|(_, subscription)| lock(&subscription.progress).nodes.contains(&self.node)).collect();
        let (told, queue) = (&mut self.told, &mut self.queue);
        told.retain(|id| {
            let stays = wanted.contains_key(id);
            if !stays {
                queue.push_back(v1::SubscriptionMessage {
                    id: id.to_string(),
                    selector: Some(v1::LogSelector::default()),
                    options: Some(v1::LogSubscriptionOptions::default()),
                    close: true,
                });
            }
            stays
        });
        for (id, subscription) in wanted {
            if told.insert(id.clone()) {
                queue.push_back(subscription.message.clone());
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = lock(&self.broker.0);
        if let Some(listeners) = state.listeners.get_mut(&self.node) {
            listeners.retain(|other| !Arc::ptr_eq(other, &self.wake));
            if !listeners.is_empty() {
                return;
            }
            state.listeners.remove(&self.node);
        }
        // Nobody is left on that node who could answer.
        for subscription in state.subscriptions.values().filter(|subscription| !subscription.follow) {
            let mut progress = lock(&subscription.progress);
            if progress.waiting.remove(&self.node) {
                progress.problems.push(format!("node {} is not available", self.node));
                if progress.is_finished() {
                    subscription.finished.notify_one();
                }
            }
        }
    }
}

/// One stream of lines from one node. Dropping it without [`Self::close`] means that the node was lost.
pub(crate) struct Publisher {
    subscription: Arc<Subscription>,
    node: NodeId,
    closed: bool,
}

impl Publisher {
    /// Hands lines on; waits while the client is slow. `false`: the client is gone.
    pub(crate) async fn send(&self, lines: Vec<v1::LogMessage>) -> bool {
        lines.is_empty() || self.subscription.lines.send(lines).await.is_ok()
    }

    /// The node has said everything.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut progress = lock(&self.subscription.progress);
        if let Some(streams) = progress.publishing.get_mut(&self.node) {
            *streams -= 1;
            if *streams == 0 {
                progress.publishing.remove(&self.node);
            }
        }
        if !self.closed && !self.subscription.follow {
            progress.problems.push(format!("node {} disconnected unexpectedly", self.node));
        }
        if progress.is_finished() {
            self.subscription.finished.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
