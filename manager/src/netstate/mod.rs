//! Tells nodes what they have to know of networks that span hosts, and hears what they have done about it (`skep.v1.NetworkState`).
//!
//! ```text
//!  store's feed ──► Index ──► a dirty set per stream ──► NetworkChanges     (rendered when it is time to say them)
//!  acknowledgements ─► Index ─► tasks that may be stopped; addresses that may be given again
//! ```
//! [`run`] lives as long as this manager leads. It makes its picture of the store, so nothing is lost with a leader but
//! the acknowledgements, which the nodes give again with the complete state they get from the next one. Streams belong to their
//! connections; a stream that is dropped leaves nothing behind. One lock holds picture and dirty sets together: what a message
//! says is exactly the revision it names.
//!
//! Cost: a change is looked at once, and costs as much as the nodes with an interest in what it changed. No channel: a stream
//! that is slow has a set that grows no further than what there is.

mod acks;
mod answering;
mod barrier;
mod dirty;
mod facts;
mod freed;
mod index;
mod observe;
mod render;
mod rotation;
mod service;
mod stream;
#[cfg(test)]
mod tests;

/// For the simulator.
pub mod pure {
    pub use super::barrier::Barrier;
    pub use super::dirty::{Dirty, Touch};
}

pub(crate) use freed::{FreedWatch, watch_freed};
pub(crate) use service::NetworkStateService;

use crate::dispatcher::BATCH;
use crate::drive::{DriveError, Term};
use crate::shared::Shared;
use barrier::Barrier;
use dirty::{Dirty, Touch};
use skep_failpoint::failpoint;
use skep_proto::skep::NetworkChanges;
use skep_store::FeedEvent;
use skep_types::{NetworkId, NodeId, Version};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How often it is looked who does not answer any more, while tasks wait for that.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The state of networks, while this manager leads.
#[derive(Default)]
pub(crate) struct NetworkStates {
    leading: Mutex<Option<Leading>>,
}

/// What there is during a term.
struct Leading {
    barrier: Barrier,
    followers: HashMap<NodeId, Follower>,
    /// Cancelled when the term ends.
    term: CancellationToken,
}

/// A node's stream.
struct Follower {
    dirty: Dirty,
    wake: Arc<Notify>,
    /// Cancelled when the node opens another.
    replaced: CancellationToken,
}

impl Follower {
    fn put(&mut self, touch: Touch) {
        let (was_empty, was_pressing) = (self.dirty.is_empty(), self.dirty.is_pressing(BATCH));
        self.dirty.put(touch);
        // The stream sleeps until its silence is over, but not longer than until something presses.
        if was_empty || (!was_pressing && self.dirty.is_pressing(BATCH)) {
            self.wake.notify_one();
        }
    }
}

/// Ends all streams with the term, however it ends.
struct EndOfTerm {
    shared: Arc<Shared>,
    term: CancellationToken,
}

impl Drop for EndOfTerm {
    fn drop(&mut self) {
        self.term.cancel();
        // A loop that was aborted may go later than the next term comes.
        self.shared.netstate.lock().take_if(|leading| leading.term.is_cancelled());
    }
}

/// Tells changes until the term ends.
pub(crate) async fn run(shared: Arc<Shared>, term: Term) -> Result<(), DriveError> {
    let (view, mut feed) = shared.watch();
    let leading = Leading { barrier: Barrier::new(&view, Instant::now()), followers: HashMap::new(), term: term.stop.child_token() };
    drop(view);
    let _end = EndOfTerm { shared: shared.clone(), term: leading.term.clone() };
    *shared.netstate.lock() = Some(leading);
    let keys = rotation::follow(&shared);
    tokio::pin!(keys);
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            () = term.stop.cancelled() => return Ok(()),
            _ = look.tick() => {
                shared.netstate.look_for_silent(Instant::now());
                continue;
            }
            never = &mut keys => match never {},
            event = feed.next() => event.ok_or(DriveError::StoreClosed)?,
        };
        if let Some(version) = shared.netstate.note(event, &shared) {
            feed.resume(version);
        }
    }
}

fn not_leading() -> Status {
    Status::aborted("the state of networks is told by the leader, and this manager does not lead")
}

impl NetworkStates {
    fn lock(&self) -> MutexGuard<'_, Option<Leading>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the store did. After a gap the revision is returned from which to go on.
    fn note(&self, event: FeedEvent, shared: &Shared) -> Option<Version> {
        let mut state = self.lock();
        let Leading { barrier, followers, .. } = state.as_mut()?;
        match event {
            FeedEvent::Commit(commit) => {
                barrier.observe(commit.version, &commit.changes, &mut |node, touch| put(followers, node, touch));
                None
            }
            FeedEvent::Resync => {
                tracing::warn!("the state of networks fell behind the store; all nodes are told everything anew");
                barrier.renew(&shared.store.view());
                for follower in followers.values_mut() {
                    follower.dirty = Dirty::everything();
                    follower.wake.notify_one();
                }
                Some(barrier.index.version)
            }
        }
    }

    /// Opens a node's stream, and ends the one it had.
    fn open(&self, node: &NodeId) -> Result<Opened, Status> {
        let mut state = self.lock();
        let leading = state.as_mut().ok_or_else(not_leading)?;
        let (wake, replaced) = (Arc::new(Notify::new()), CancellationToken::new());
        let follower = Follower { dirty: Dirty::everything(), wake: wake.clone(), replaced: replaced.clone() };
        if let Some(before) = leading.followers.insert(node.clone(), follower) {
            before.replaced.cancel();
        }
        let Leading { barrier, followers, .. } = leading;
        barrier.opened(node, Instant::now(), &mut |node, touch| put(followers, node, touch));
        Ok(Opened { wake, replaced, term: leading.term.clone() })
    }

    /// Whether there is something to say, and whether it should be said at once; `None` if the stream is not the node's any more.
    fn waiting(&self, node: &NodeId, opened: &Opened) -> Option<(bool, bool)> {
        let state = self.lock();
        let follower = state.as_ref()?.followers.get(node).filter(|follower| Arc::ptr_eq(&follower.wake, &opened.wake))?;
        Some((!follower.dirty.is_empty(), follower.dirty.is_pressing(BATCH)))
    }

    /// What the node is to be told now.
    fn take(&self, node: &NodeId, opened: &Opened) -> Option<NetworkChanges> {
        let mut state = self.lock();
        let leading = state.as_mut()?;
        let follower = leading.followers.get_mut(node).filter(|follower| Arc::ptr_eq(&follower.wake, &opened.wake))?;
        let dirty = std::mem::take(&mut follower.dirty);
        failpoint!("manager.netstate.taken");
        Some(leading.barrier.say(node, dirty, Instant::now()))
    }

    fn acknowledge(&self, node: &NodeId, programmed: Version) {
        let mut state = self.lock();
        if let Some(Leading { barrier, followers, .. }) = state.as_mut() {
            barrier.acknowledge(node, programmed, Instant::now(), &mut |node, touch| put(followers, node, touch));
        }
    }

    /// The node said something that is no acknowledgement.
    fn heard(&self, node: &NodeId) {
        if let Some(leading) = self.lock().as_mut() {
            leading.barrier.heard(node, Instant::now());
        }
    }

    /// The node could not do what it was told; it goes on trying.
    fn failed(&self, node: &NodeId) {
        if let Some(leading) = self.lock().as_mut() {
            leading.barrier.failed(node, Instant::now());
        }
    }

    /// Tasks that are to stop wait no longer for nodes that do not answer any more.
    fn look_for_silent(&self, now: Instant) {
        let mut state = self.lock();
        let Some(Leading { barrier, followers, .. }) = state.as_mut() else { return };
        for node in barrier.look_for_silent(now, &mut |node, touch| put(followers, node, touch)) {
            tracing::info!(%node, "a node does not say what it has done about networks; tasks are stopped without waiting for it");
        }
    }

    fn close(&self, node: &NodeId, opened: &Opened) {
        if let Some(leading) = self.lock().as_mut()
            && leading.followers.get(node).is_some_and(|follower| Arc::ptr_eq(&follower.wake, &opened.wake))
        {
            leading.followers.remove(node);
            leading.barrier.closed(node, Instant::now());
        }
    }

    /// Every node that uses or may come to use what it knows of the network has everything up to this revision in place; `None` while this manager cannot say.
    pub(crate) fn acknowledged(&self, network: &NetworkId) -> Option<Version> {
        self.lock().as_ref().map(|leading| leading.barrier.acknowledged(network))
    }
}

fn put(followers: &mut HashMap<NodeId, Follower>, node: &NodeId, touch: Touch) {
    if let Some(follower) = followers.get_mut(node) {
        follower.put(touch);
    }
}

/// A stream's ends of what it shares with the picture.
struct Opened {
    wake: Arc<Notify>,
    replaced: CancellationToken,
    term: CancellationToken,
}
