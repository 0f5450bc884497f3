//! Writes of the dispatcher that wait for the commit in flight. Pure.

use super::reports::Reports;
use skep_types::{Action, ClusterView, Node, NodeDescription, NodeId, NodeState, Object, TaskId, TaskStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What is to be written about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeNews {
    /// It has a session. What it does not describe stays as it was.
    Registered {
        description: Option<NodeDescription>,
        addr: String,
    },
    Down,
    /// It said that it left the cluster.
    Left,
    /// It said that its daemon stops and its tasks go on. The original has this state for nodes that look for another manager,
    /// and never writes it: it is stored while the dispatcher stops, and then nothing is (`SK/manager/dispatcher/dispatcher.go`,
    /// `disconnectNode`, `isRunningLocked`).
    Stopping,
    /// A new leader has not heard of it yet.
    Unknown,
}

impl NodeNews {
    /// The node with the news in it; `None` if it says nothing new.
    fn write(&self, node: &Arc<Node>) -> Option<Node> {
        let mut new = Node::clone(node);
        match self {
            Self::Registered { description, addr } => {
                new.description = description.clone().or(new.description);
                new.status = skep_types::NodeStatus { state: NodeState::Ready, message: String::new(), addr: addr.clone() };
            }
            Self::Down => {
                new.status.state = NodeState::Down;
                new.status.message = "heartbeat failure".into();
            }
            Self::Left => {
                new.status.state = NodeState::Down;
                new.status.message = "the node left the cluster".into();
            }
            Self::Stopping => {
                new.status.state = NodeState::Disconnected;
                new.status.message = "the node's daemon was stopped; its tasks go on".into();
            }
            Self::Unknown => {
                new.status.state = NodeState::Unknown;
                new.status.message = "waiting for the node to register with the new leader".into();
            }
        }
        (new != **node).then_some(new)
    }
}

/// The newest news per node and report per task, and who waits for them to be written.
#[derive(Debug, Default)]
pub struct Pending {
    nodes: BTreeMap<NodeId, NodeNews>,
    /// News in the batch that is being written now.
    in_flight: BTreeSet<NodeId>,
    reports: Reports,
    waiting: Vec<oneshot::Sender<()>>,
}

/// One transaction's worth.
#[derive(Debug, Default)]
pub struct Batch {
    pub actions: Vec<Action>,
    /// To put back if the transaction was stale.
    nodes: BTreeMap<NodeId, NodeNews>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Pending {
    pub fn report(&mut self, task: TaskId, status: TaskStatus) {
        self.reports.add(task, status);
    }

    /// News replace older news of the node.
    pub fn node(&mut self, node: NodeId, news: NodeNews) {
        self.nodes.insert(node, news);
    }

    /// Whether the store shows these news already, and nothing else is on its way to it: then nobody need wait for a write.
    pub fn is_known(&self, node: &Arc<Node>, news: &NodeNews) -> bool {
        !self.nodes.contains_key(&node.id) && !self.in_flight.contains(&node.id) && news.write(node).is_none()
    }

    /// Ends when everything that is pending now has been written; with an error if it never will be.
    pub fn when_written(&mut self) -> oneshot::Receiver<()> {
        let (done, wait) = oneshot::channel();
        self.waiting.push(done);
        wait
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.reports.is_empty() && self.waiting.is_empty()
    }

    pub fn take(&mut self, view: &impl ClusterView) -> Batch {
        let nodes = std::mem::take(&mut self.nodes);
        self.in_flight = nodes.keys().cloned().collect();
        let mut actions: Vec<Action> = nodes
            .iter()
            .filter_map(|(id, news)| news.write(view.node(id)?))
            .map(|node| Action::Update(Object::Node(Arc::new(node))))
            .collect();
        actions.extend(self.reports.take(view));
        Batch { actions, nodes, waiting: std::mem::take(&mut self.waiting) }
    }

    /// The batch that was taken last is in the store.
    pub fn landed(&mut self) {
        self.in_flight.clear();
    }

    /// A node had moved on: its news are decided anew. Reports of tasks are not lost: they are never stale and come again.
    pub fn put_back(&mut self, batch: Batch) {
        self.in_flight.clear();
        for (node, news) in batch.nodes {
            self.nodes.entry(node).or_insert(news);
        }
        for action in batch.actions {
            if let Action::SetTaskStatus { task, status } = action {
                self.reports.add(task, status);
            }
        }
        self.waiting.extend(batch.waiting);
    }
}

impl Batch {
    /// Tells who waited.
    pub fn written(self) {
        for waiting in self.waiting {
            // Who stopped waiting does not mind.
            let _ = waiting.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::assignments::tests::World;
    use skep_types::{NodeStatus, Version};

    fn ready() -> Node {
        let mut node = Node::new(NodeId::for_test(1));
        node.status = NodeStatus { state: NodeState::Ready, message: String::new(), addr: "10.0.0.1".into() };
        node.meta.version = Version(1);
        node
    }

    fn registered(addr: &str) -> NodeNews {
        NodeNews::Registered { description: None, addr: addr.into() }
    }

    #[test]
    fn a_node_that_comes_back_as_it_was_costs_no_write() {
        let mut pending = Pending::default();
        let node = Arc::new(ready());
        assert!(pending.is_known(&node, &registered("10.0.0.1")));
        assert!(!pending.is_known(&node, &registered("10.0.0.2")));
        pending.node(node.id.clone(), NodeNews::Down);
        assert!(!pending.is_known(&node, &registered("10.0.0.1")), "it is about to be called down");
        let batch = pending.take(&World::new().view());
        assert!(!pending.is_known(&node, &registered("10.0.0.1")), "the call is on its way");
        batch.written();
        pending.landed();
        assert!(pending.is_known(&node, &registered("10.0.0.1")));
    }
}
