//! One agent's registration with this leader.

use super::inbox::Inbox;
use skep_types::{NodeId, SessionId, TaskId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// Registrations a node may make in a row, and the pause after which counting starts again (spec wire-behaviour 8.1).
const REGISTRATIONS: u32 = 3;
const REGISTRATION_PAUSE: Duration = Duration::from_secs(8);

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The node registered anew.
    Replaced,
    /// Heartbeats stopped, or the node was removed.
    NotRegistered,
    /// This manager leads no more.
    NotLeader,
}

impl Ended {
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Replaced => Status::invalid_argument("session invalid: the node has registered anew"),
            Self::NotRegistered => Status::not_found("node not registered"),
            Self::NotLeader => Status::aborted("dispatcher is stopped: this manager is not the leader"),
        }
    }
}

/// What its streams share. Streams wait on it; only the dispatcher changes it.
#[derive(Debug)]
pub(crate) struct Session {
    pub id: SessionId,
    pub node: NodeId,
    /// Counts what the session stream has to tell: the node, the cluster or the managers changed.
    changed: watch::Sender<u64>,
    ended: watch::Sender<Option<Ended>>,
    inboxes: Mutex<Vec<Arc<Inbox>>>,
}

impl Session {
    pub(crate) fn new(id: SessionId, node: NodeId) -> Self {
        Self { id, node, changed: watch::Sender::new(0), ended: watch::Sender::new(None), inboxes: Mutex::default() }
    }

    pub(crate) fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Ends the session; the first reason stays.
    pub(crate) fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(why);
            first
        });
    }

    pub(crate) fn is_ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Waits until the session is over.
    pub(crate) async fn wait_ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or(Ended::NotLeader),
            Err(_) => Ended::NotLeader,
        }
    }

    fn lock_inboxes(&self) -> MutexGuard<'_, Vec<Arc<Inbox>>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream's inbox. It lives as long as somebody besides the session holds it.
    pub(crate) fn open_inbox(&self) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::default());
        let mut inboxes = self.lock_inboxes();
        inboxes.retain(|inbox| Arc::strong_count(inbox) > 1);
        inboxes.push(inbox.clone());
        inbox
    }

    /// Every stream of the session looks at this task again.
    pub(crate) fn task_changed(&self, task: &TaskId) {
        for inbox in self.lock_inboxes().iter() {
            inbox.put(task.clone());
        }
    }

    /// Events were lost: every stream looks at everything again.
    pub(crate) fn everything_changed(&self) {
        self.tell();
        for inbox in self.lock_inboxes().iter() {
            inbox.put_all();
        }
    }
}

/// How often a node registered lately.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registrations {
    count: u32,
    last: Instant,
}

impl Registrations {
    /// Counts one more; refuses when there were too many in too short a time.
    pub(crate) fn count(before: Option<Self>, now: Instant) -> Result<Self, Status> {
        match before {
            Some(before) if now.duration_since(before.last) <= REGISTRATION_PAUSE => {
                if before.count >= REGISTRATIONS {
                    return Err(Status::unavailable("the node registers too often; wait some seconds"));
                }
                Ok(Self { count: before.count + 1, last: now })
            }
            _ => Ok(Self { count: 1, last: now }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_may_register_three_times_in_a_row() {
        let now = Instant::now();
        let mut before = None;
        for _ in 0..3 {
            before = Some(Registrations::count(before, now).unwrap());
        }
        assert_eq!(Registrations::count(before, now).unwrap_err().code(), tonic::Code::Unavailable);
        assert!(Registrations::count(before, now + Duration::from_secs(9)).is_ok());
    }

    #[tokio::test]
    async fn a_session_ends_once_and_everybody_hears_why() {
        let session = Session::new(SessionId::for_test(1), NodeId::for_test(2));
        assert_eq!(session.is_ended(), None);
        session.end(Ended::Replaced);
        session.end(Ended::NotLeader);
        assert_eq!(session.wait_ended().await, Ended::Replaced);
    }

    #[tokio::test]
    async fn an_inbox_goes_with_its_stream() {
        let session = Session::new(SessionId::for_test(1), NodeId::for_test(2));
        let first = session.open_inbox();
        drop(session.open_inbox());
        session.task_changed(&TaskId::for_test(3));
        assert_eq!(first.len(), 1);
        drop(session.open_inbox());
        assert_eq!(session.lock_inboxes().len(), 2);
    }
}
