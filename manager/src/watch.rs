//! The service `Watch`: changes of the store as they are committed (spec wire-behaviour 23).

mod filter;

use crate::control::errors::invalid;
use crate::shared::Shared;
use filter::Entry;
use futures_util::stream::{self, BoxStream};
use skep_proto::{ToWire as _, v1};
use skep_store::{Commit, Feed, FeedEvent};
use skep_types::{Change, ClusterView as _, Version};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Tells managers and their tools what changes.
#[derive(Clone)]
pub(crate) struct WatchService {
    shared: Arc<Shared>,
}

impl WatchService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

struct Watching {
    shared: Arc<Shared>,
    entries: Vec<Entry>,
    with_old: bool,
    feed: Feed,
    is_first: bool,
}

impl Watching {
    async fn next(&mut self) -> Result<v1::WatchMessage, Status> {
        if std::mem::take(&mut self.is_first) {
            // An empty message says that the watch stands.
            return Ok(v1::WatchMessage::default());
        }
        loop {
            let event = tokio::select! {
                event = self.feed.next() => event,
                () = self.shared.stop.cancelled() => None,
            };
            match event {
                Some(FeedEvent::Commit(commit)) => {
                    let events = self.events(&commit);
                    if !events.is_empty() {
                        return Ok(v1::WatchMessage { events, version: Some(commit.version.to_wire()) });
                    }
                }
                Some(FeedEvent::Resync) => {
                    return Err(Status::out_of_range(
                        "the changes asked for are not kept any more; list the objects again and watch from there",
                    ));
                }
                None => return Err(Status::unavailable("this manager stops")),
            }
        }
    }

    fn events(&self, commit: &Commit) -> Vec<v1::watch_message::Event> {
        let wanted = commit.changes.iter().filter(|change| self.entries.iter().any(|entry| entry.matches(change)));
        wanted.map(|change| event(change, self.with_old)).collect()
    }
}

fn event(change: &Change, with_old: bool) -> v1::watch_message::Event {
    let (action, old_object) = match change {
        Change::Created(_) => (v1::WatchActionKind::WatchActionCreate, None),
        Change::Updated { old, .. } => (v1::WatchActionKind::WatchActionUpdate, with_old.then(|| old.to_wire())),
        Change::Removed(_) => (v1::WatchActionKind::WatchActionRemove, None),
    };
    v1::watch_message::Event { action: action as i32, object: Some(change.object().to_wire()), old_object }
}

#[tonic::async_trait]
impl v1::watch_server::Watch for WatchService {
    type WatchStream = BoxStream<'static, Result<v1::WatchMessage, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let entries = filter::parse(request.entries).map_err(invalid)?;
        let now = self.shared.store.view().version();
        let from = match request.resume_from {
            Some(version) if version.index > now.0 => {
                return Err(Status::invalid_argument(format!("resume_from: version {} is in the future", version.index)));
            }
            Some(version) => Version(version.index),
            None => now,
        };
        let feed = self.shared.store.feed(from);
        let state = Watching { shared: self.shared.clone(), entries, with_old: request.include_old_object, feed, is_first: true };
        let messages = stream::unfold(Some(state), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(message) => Some((Ok(message), Some(state))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }
}
