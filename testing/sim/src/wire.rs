//! Connections of agents to managers, and messages on their way.
//!
//! As over TCP: within a stream of a connection messages come in order and each at most once; streams overtake each other; what is
//! under way when a connection ends is lost, whether the other end knows that it ended or not. While a link is cut nothing passes.

use crate::numbered::ByNode;
use crate::queue::Moment;
use crate::world::{Event, World};
use skep_proto::skep::NetworkChanges;
use skep_proto::v1;
use skep_types::{NodeDescription, NodeId, TaskId, TaskStatus, Version};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub type ConnId = u64;

/// From an agent.
#[derive(Debug, Clone)]
pub enum Up {
    Register {
        last: String,
        description: NodeDescription,
    },
    Beat {
        session: String,
    },
    Assignments {
        session: String,
        applied: String,
    },
    Report {
        session: String,
        batch: Vec<(TaskId, TaskStatus)>,
    },
    /// It wants to be told of networks.
    Follow {
        session: String,
    },
    /// What was said of backends is in place up to there; `None`: it could not be put there.
    Backends {
        session: String,
        programmed: Option<Version>,
    },
}

/// To an agent.
#[derive(Debug, Clone)]
pub enum Down {
    Registered {
        session: String,
    },
    Beaten {
        period: Duration,
    },
    Assigned(Box<v1::AssignmentsMessage>),
    /// Where tasks are and which of them connections may be led to, and when the leader said so.
    Backends(Box<NetworkChanges>, Moment),
    Reported,
    /// The manager answered that it cannot help, or ended the session.
    Refused,
}

#[derive(Debug, Clone)]
enum Message {
    Up(Up),
    Down(Down),
}

impl Message {
    /// Messages of one stream come in order. Registering comes before anything else anyhow.
    fn stream(&self) -> u8 {
        match self {
            Self::Up(Up::Register { .. }) | Self::Down(Down::Registered { .. } | Down::Refused) => 0,
            Self::Up(Up::Beat { .. }) | Self::Down(Down::Beaten { .. }) => 1,
            Self::Up(Up::Assignments { .. }) | Self::Down(Down::Assigned(_)) => 2,
            Self::Up(Up::Report { .. }) | Self::Down(Down::Reported) => 3,
            Self::Up(Up::Follow { .. } | Up::Backends { .. }) | Self::Down(Down::Backends(..)) => BACKENDS,
        }
    }
}

const BACKENDS: u8 = 4;

/// One direction of one stream.
type Lane = (bool, u8);

struct Conn {
    node: NodeId,
    manager: usize,
    lanes: BTreeMap<Lane, (VecDeque<Message>, Moment)>,
}

/// All connections. One that is gone carries nothing any more.
#[derive(Default)]
pub struct Wire {
    conns: BTreeMap<ConnId, Conn>,
    count: ConnId,
    /// Until when a node reaches no manager.
    cut: ByNode<Moment>,
    /// Until when a node does not reach one manager.
    cut_from: BTreeMap<(NodeId, usize), Moment>,
    /// Until when a manager reaches nobody.
    isolated: BTreeMap<usize, Moment>,
}

/// How often a message that does not pass is tried again.
const RETRY: Duration = Duration::from_millis(200);

impl Wire {
    pub fn open(&mut self, node: &NodeId, manager: usize) -> ConnId {
        self.count += 1;
        self.conns.insert(self.count, Conn { node: node.clone(), manager, lanes: BTreeMap::new() });
        self.count
    }

    pub fn close(&mut self, conn: ConnId) {
        self.conns.remove(&conn);
    }

    #[must_use]
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.conns.contains_key(&conn)
    }

    /// The connections of a node, or to a manager.
    #[must_use]
    pub fn of(&self, node: Option<&NodeId>, manager: Option<usize>) -> Vec<ConnId> {
        let fits = |conn: &Conn| node == Some(&conn.node) || manager == Some(conn.manager);
        self.conns.iter().filter(|(_, conn)| fits(conn)).map(|(id, _)| *id).collect()
    }

    /// The node at the other end; the empty cluster's if there is none.
    #[must_use]
    pub fn node(&self, conn: ConnId) -> NodeId {
        self.conns.get(&conn).map_or_else(|| NodeId::for_test(0), |conn| conn.node.clone())
    }

    pub fn cut(&mut self, node: &NodeId, until: Moment) {
        self.cut.insert(node.clone(), until);
    }

    pub fn cut_from(&mut self, node: &NodeId, manager: usize, until: Moment) {
        self.cut_from.insert((node.clone(), manager), until);
    }

    pub fn isolate(&mut self, manager: usize, until: Moment) {
        self.isolated.insert(manager, until);
    }

    #[must_use]
    pub fn is_isolated(&self, manager: usize, now: Moment) -> bool {
        self.isolated.get(&manager).is_some_and(|until| now < *until)
    }

    /// Whether anything passes between a node and a manager.
    #[must_use]
    pub fn passes(&self, node: &NodeId, manager: usize, now: Moment) -> bool {
        let over = |until: Option<&Moment>| until.is_none_or(|until| now >= *until);
        !self.is_isolated(manager, now)
            && over(self.cut.get(node))
            && (self.cut_from.is_empty() || over(self.cut_from.get(&(node.clone(), manager))))
    }

    /// Everything passes again.
    pub fn heal(&mut self) {
        self.cut = ByNode::default();
        self.cut_from.clear();
        self.isolated.clear();
    }
}

impl World {
    pub fn up(&mut self, conn: ConnId, up: Up) {
        self.send(conn, Message::Up(up));
    }

    pub fn down(&mut self, conn: ConnId, down: Down) {
        self.send(conn, Message::Down(down));
    }

    fn send(&mut self, id: ConnId, message: Message) {
        let dice = if message.stream() == BACKENDS { &mut self.backend_dice } else { &mut self.dice };
        let delay = match dice.roll(20) {
            0 => dice.moment(0..300),
            _ => dice.moment(0..6),
        };
        let Some(conn) = self.wire.conns.get_mut(&id) else { return };
        let lane = (matches!(message, Message::Up(_)), message.stream());
        let (waiting, last) = conn.lanes.entry(lane).or_default();
        waiting.push_back(message);
        *last = (*last).max(self.now + delay);
        let at = *last;
        self.queue.put(at, Event::Wire { conn: id, lane });
    }

    /// The next message of a lane arrives, if it can.
    pub fn arrive(&mut self, id: ConnId, lane: Lane) {
        let now = self.now;
        let Some(conn) = self.wire.conns.get(&id) else { return };
        let (node, manager) = (conn.node.clone(), conn.manager);
        if !self.wire.passes(&node, manager, now) {
            return self.after(RETRY, Event::Wire { conn: id, lane });
        }
        let front = self.wire.conns.get_mut(&id).and_then(|conn| conn.lanes.get_mut(&lane)).and_then(|(waiting, _)| waiting.pop_front());
        match front {
            Some(Message::Up(up)) => match self.who_serves(manager) {
                Some(leader) => self.serve(leader, id, up),
                None => self.down(id, Down::Refused),
            },
            Some(Message::Down(down)) => self.agent_hears(&node, id, down),
            None => {}
        }
    }

    /// Who answers what reaches `manager`: itself if it leads or believes so, else the leader, if it can be reached.
    fn who_serves(&self, manager: usize) -> Option<usize> {
        if self.managers[manager].lead.is_some() {
            return Some(manager);
        }
        self.raft.leader.filter(|leader| {
            self.managers[manager].up && self.managers[*leader].lead.is_some() && !self.wire.is_isolated(*leader, self.now)
        })
    }
}
