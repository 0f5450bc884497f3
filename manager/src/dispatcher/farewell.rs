//! Nodes that say why they go. Only ours do; of others their silence tells in the end.
//!
//! The word comes with a last heartbeat, as metadata that a genuine manager does not look at.

use super::Dispatcher;
use super::pending::NodeNews;
use super::session::{Ended, Session};
use skep_failpoint::failpoint;
use std::sync::Arc;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// Metadata of a node's last heartbeat.
const FAREWELL: &str = "skep-farewell";

/// Why a node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It left the cluster, and its tasks are gone.
    Left,
    /// Its daemon stops; its tasks go on, and it means to be back.
    Stopping,
}

impl Farewell {
    /// `None`: an ordinary heartbeat, or a word that a later version may know.
    pub(super) fn of(metadata: &MetadataMap) -> Option<Self> {
        match metadata.get(FAREWELL)?.as_bytes() {
            b"left" => Some(Self::Left),
            b"stopping" => Some(Self::Stopping),
            _ => None,
        }
    }
}

impl Dispatcher {
    /// Ends the session and writes down what the node said. A node that stops has what is left of its time to be back, and is
    /// DOWN then like any other. Ends when it is written.
    pub(super) async fn part(&self, session: &Arc<Session>, farewell: Farewell) -> Result<(), Status> {
        let written = {
            let mut state = self.lock();
            // It may have run out, or the node may have come anew, while this call waited for the lock.
            if session.is_ended().is_some() {
                return Err(Ended::NotRegistered.status());
            }
            let node = session.node.clone();
            state.sessions.remove(&node);
            session.end(Ended::NotRegistered);
            let news = match farewell {
                Farewell::Left => {
                    tracing::info!(%node, "the node left the cluster");
                    state.beats.forget(&node);
                    NodeNews::Left
                }
                Farewell::Stopping => {
                    tracing::info!(%node, "the node's daemon stops");
                    NodeNews::Stopping
                }
            };
            state.pending.node(node, news);
            state.pending.when_written()
        };
        self.writer_wake.notify_one();
        written.await.map_err(|_| Ended::NotLeader.status())?;
        failpoint!("manager.dispatcher.farewell.written");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_known_is_no_farewell() {
        let with = |word: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(FAREWELL, word.parse().unwrap());
            Farewell::of(&metadata)
        };
        assert_eq!((with("left"), with("stopping")), (Some(Farewell::Left), Some(Farewell::Stopping)));
        assert_eq!((with(""), with("hibernating"), Farewell::of(&MetadataMap::new())), (None, None, None));
    }
}
