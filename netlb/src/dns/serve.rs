//! The server of one task: what a message leads to, and the loop that reads datagrams.

use super::answer::{Answer, answer};
use super::batch;
use super::bucket::Bucket;
use super::cache::Asked;
use super::foreign::Foreign;
use super::names::{Asker, Names};
use super::owner::{Asking, Shared};
use super::query::Transport;
use super::socket::Place;
use super::upstream::AskFrom;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockReadGuard};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Datagrams read before the loop looks at anything else.
const AT_ONCE: u32 = 32;
/// A foreign name that must be asked for counts as so many messages: it takes a socket or two, or even a thread.
pub(super) const FOREIGN_COST: u32 = 20;
/// After an error that is not the client's: it should not fill the log, nor the processor.
const PAUSE: Duration = Duration::from_millis(100);

/// The server of one task.
#[derive(Debug)]
pub(super) struct Server {
    shared: Arc<Shared>,
    asking: watch::Receiver<Arc<Asking>>,
    place: Place,
    /// Tells its namespace apart from others'.
    number: u64,
    bucket: Mutex<Bucket>,
    /// For this task, so that one that asks for dead names keeps nobody else from asking.
    asked_at_once: Arc<Semaphore>,
}

/// What a message leads to.
pub(super) enum Next {
    Reply(Vec<u8>),
    /// Ask resolvers: [`Server::ask`].
    Ask(Job),
    Nothing,
}

/// A foreign name to ask for, and the right to do so.
pub(super) struct Job {
    foreign: Foreign,
    asked: Asked,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, asking: watch::Receiver<Arc<Asking>>, place: Place, number: u64) -> Self {
        let limits = &shared.limits;
        let bucket = Bucket::new(limits.messages_per_second, limits.messages_at_once, Instant::now().into_std());
        let asked_at_once = Arc::new(Semaphore::new(limits.asked_at_once));
        Self { asking, place, number, bucket: Mutex::new(bucket), asked_at_once, shared }
    }

    pub(super) fn most_connections(&self) -> usize {
        self.shared.limits.connections
    }

    /// Decides without waiting: whatever happens to foreign names, those of the cluster are answered at once.
    pub(super) fn next(&self, message: &[u8], over: Transport) -> Next {
        self.shared.counters.messages.add(1);
        let asking = self.asking.borrow();
        let outcome = answer(message, over, &self.names(), &asking.asker, rand::random());
        match outcome {
            Answer::Ignore => Next::Nothing,
            Answer::Reply(bytes) => {
                self.shared.counters.answered.add(1);
                Next::Reply(bytes)
            }
            Answer::Forward(foreign) => self.next_foreign(foreign, &asking),
        }
    }

    fn names(&self) -> RwLockReadGuard<'_, Names> {
        self.shared.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_foreign(&self, foreign: Foreign, asking: &Asking) -> Next {
        let resolvers = asking.resolvers.clone().unwrap_or_else(|| self.shared.host_resolvers());
        let place = resolvers.iter().any(|resolver| resolver.from == AskFrom::Task).then_some(self.number);
        let asked = Asked { key: foreign.key(), resolvers, place };
        if let Some(bytes) = self.shared.forwarder.remembered(&foreign, &asked) {
            self.shared.counters.remembered.add(1);
            return Next::Reply(bytes);
        }
        let here = self.asked_at_once.clone().try_acquire_owned();
        let on_node = self.shared.asked_at_once.clone().try_acquire_owned();
        match (here, on_node) {
            (Ok(here), Ok(on_node)) => {
                self.shared.counters.forwarded.add(1);
                Next::Ask(Job { foreign, asked, _permits: (here, on_node) })
            }
            _ => {
                self.shared.counters.turned_away.add(1);
                Next::Reply(foreign.failure())
            }
        }
    }

    pub(super) async fn ask(&self, job: Job) -> Vec<u8> {
        self.shared.forwarder.ask(&job.foreign, job.asked, &self.place).await
    }

    /// How many messages of the container may be looked at now; waits until it is one at least.
    pub(super) async fn wait_for_turn(&self) -> u32 {
        loop {
            let available = self.bucket().available(AT_ONCE, Instant::now().into_std());
            match available {
                Ok(count) => return count,
                Err(when) => {
                    self.shared.counters.held_back.add(1);
                    sleep_until(when.into()).await;
                }
            }
        }
    }

    pub(super) fn take_turns(&self, count: u32) {
        self.bucket().take(count, Instant::now().into_std());
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads datagrams until told to stop. While the container has asked too much nothing is read, and the kernel throws away
    /// what its buffer does not hold: a flood costs no more than the questions that are let through.
    pub(super) async fn serve_udp(self: Arc<Self>, socket: UdpSocket, stop: CancellationToken) {
        let socket = Arc::new(socket);
        let mut asked = JoinSet::new();
        loop {
            let readable = async {
                let turns = self.wait_for_turn().await;
                socket.readable().await.map(|()| turns)
            };
            // Both branches may be lost half-way: nothing is read yet.
            let outcome = tokio::select! {
                () = stop.cancelled() => return asked.shutdown().await,
                Some(ended) = asked.join_next() => {
                    told(ended);
                    continue;
                }
                ready = readable => ready.and_then(|turns| self.read_some(turns, &socket, &mut asked)),
            };
            if let Err(error) = outcome {
                warn!(%error, "could not read questions");
                tokio::select! {
                    () = stop.cancelled() => return asked.shutdown().await,
                    () = sleep(PAUSE) => {}
                }
            }
        }
    }

    fn read_some(self: &Arc<Self>, turns: u32, socket: &Arc<UdpSocket>, asked: &mut JoinSet<()>) -> io::Result<()> {
        let mut taken = 0;
        let outcome = loop {
            if taken >= turns {
                break Ok(());
            }
            let mut foreign = 0;
            let read = batch::exchange(socket, turns - taken, |message, client| match self.next(message, Transport::Udp) {
                Next::Reply(bytes) => Some(bytes),
                Next::Ask(job) => {
                    foreign += 1;
                    let (server, socket) = (self.clone(), socket.clone());
                    asked.spawn(async move { send(&socket, &server.ask(job).await, client.into()) });
                    None
                }
                Next::Nothing => None,
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
                Ok(count) => taken += count + foreign * (FOREIGN_COST - 1),
            }
        };
        self.take_turns(taken);
        outcome
    }
}

/// A question that broke off is a mistake of ours; the others go on.
pub(super) fn told(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "a question broke off");
    }
}

/// A client that is gone, or takes nothing, is no matter of ours; it will ask again.
fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    drop(socket.try_send_to(bytes, client));
}

impl Asking {
    /// With the host's resolvers.
    #[must_use]
    pub fn new(asker: Asker) -> Self {
        Self { asker, resolvers: None }
    }
}
