//! One node's Follow stream. It belongs to its connection and holds all it needs; dropping it ends it.

use super::service::{announce, tell_keys, tell_mtu};
use super::{NetworkStates, Opened, not_leading};
use crate::authorize::Caller;
use crate::dispatcher::quiet_after;
use crate::shared::Shared;
use futures_util::stream::{self, BoxStream};
use skep_proto::skep::{NetworkChanges, NetworkReport};
use skep_types::{NodeId, Version};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Status, Streaming};

pub(super) type Changes = BoxStream<'static, Result<NetworkChanges, Status>>;

/// A node says who it is with its first message, which it sends with the call; this is for the network in between.
const HELLO_WAIT: Duration = Duration::from_secs(10);

/// A stream that has begun.
struct Follow {
    shared: Arc<Shared>,
    node: NodeId,
    opened: Opened,
    reports: Streaming<NetworkReport>,
    /// Of the last message: nobody can have more in place.
    told: Version,
    quiet_until: Instant,
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.shared.netstate.close(&self.node, &self.opened);
    }
}

impl Follow {
    async fn begin(shared: Arc<Shared>, caller: &Caller, mut reports: Streaming<NetworkReport>) -> Result<Self, Status> {
        let first = tokio::time::timeout(HELLO_WAIT, reports.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the node did not say hello"))??;
        let hello = first.and_then(|first| first.hello);
        let hello = hello.ok_or_else(|| Status::invalid_argument("hello is missing in the first message"))?;
        let node = announce(&shared, caller, &hello).await?;
        let opened = shared.netstate.open(&node)?;
        Ok(Self { shared, node, opened, reports, told: Version::default(), quiet_until: Instant::now() })
    }

    /// The next message; `None` when the node has hung up.
    async fn next(&mut self) -> Result<Option<NetworkChanges>, Status> {
        loop {
            tokio::select! {
                () = self.opened.term.cancelled() => return Err(not_leading()),
                () = self.opened.replaced.cancelled() => return Err(Status::aborted("the node has opened another stream")),
                // Nothing is lost when another branch is ready: the message stays in the decoder.
                report = self.reports.message() => match report? {
                    Some(report) => {
                        if let Some(keys) = report.keys {
                            tell_keys(&self.shared, &self.node, keys.keys).await?;
                        }
                        if report.underlay_mtu != 0 {
                            tell_mtu(&self.shared, &self.node, report.underlay_mtu).await?;
                        }
                        match report.programmed {
                            0 => self.shared.netstate.heard(&self.node),
                            skep_proto::NOT_PROGRAMMED => self.shared.netstate.failed(&self.node),
                            revision => self.shared.netstate.acknowledge(&self.node, Version(revision).min(self.told)),
                        }
                    }
                    None => return Ok(None),
                },
                gone = wait(&self.shared.netstate, &self.node, &self.opened, self.quiet_until) => {
                    let changes = if gone { None } else { self.shared.netstate.take(&self.node, &self.opened) };
                    let changes = changes.ok_or_else(not_leading)?;
                    self.told = Version(changes.revision);
                    self.quiet_until = quiet_after(size(&changes), Instant::now());
                    return Ok(Some(changes));
                }
            }
        }
    }
}

/// Waits until there is something to say and it is time: at once when the stream was quiet, else after `quiet_until` or when it
/// presses. Returns whether the stream is over.
async fn wait(states: &NetworkStates, node: &NodeId, opened: &Opened, quiet_until: Instant) -> bool {
    loop {
        match states.waiting(node, opened) {
            None => return true,
            Some((true, true)) => return false,
            Some((true, false)) if Instant::now() >= quiet_until => return false,
            Some((true, false)) => {
                let _ = tokio::time::timeout_at(quiet_until, opened.wake.notified()).await;
            }
            Some((false, _)) => opened.wake.notified().await,
        }
    }
}

fn size(changes: &NetworkChanges) -> usize {
    let of = |delta: &skep_proto::skep::NetworkDelta| {
        let gone = delta.removed_peers.len() + delta.removed_endpoints.len() + delta.removed_services.len();
        1 + delta.peers.len() + delta.endpoints.len() + delta.services.len() + gone
    };
    changes.networks.iter().map(of).sum::<usize>() + changes.cleared_tasks.len()
}

/// What a stream is to do next.
enum State {
    Begin(Arc<Shared>, Caller, Box<Streaming<NetworkReport>>),
    Go(Box<Follow>),
}

/// Tells a node everything, then what changes, and takes its acknowledgements.
pub(super) fn follow(shared: Arc<Shared>, caller: Caller, reports: Streaming<NetworkReport>) -> Changes {
    let state = State::Begin(shared, caller, Box::new(reports));
    Box::pin(stream::unfold(Some(state), |state| async move {
        let mut follow = match state? {
            State::Go(follow) => follow,
            State::Begin(shared, caller, reports) => match Follow::begin(shared, &caller, *reports).await {
                Ok(follow) => Box::new(follow),
                Err(status) => return Some((Err(status), None)),
            },
        };
        match follow.next().await {
            Ok(Some(changes)) => Some((Ok(changes), Some(State::Go(follow)))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    }))
}
