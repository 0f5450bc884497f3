//! The last word to a manager, so that it need not wait for this node's silence.
//!
//! It goes with a heartbeat, as metadata: a genuine manager takes it for one heartbeat more.

use skep_proto::v1;
use skep_proto::v1::dispatcher_client::DispatcherClient;
use std::time::Duration;
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

const FAREWELL: &str = "skep-farewell";
/// For the call. Nobody who stops a daemon wants to wait for a manager that does not answer.
const LIMIT: Duration = Duration::from_secs(1);

/// Why this node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// The daemon stops; the tasks go on.
    Stopping,
    /// The node left the cluster; its tasks are gone.
    Left,
}

impl Farewell {
    /// How long the manager is looked for and told.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Stopping => LIMIT,
            // The manager beside it may have handed over a moment ago.
            Self::Left => Duration::from_secs(3),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Stopping => "stopping",
            Self::Left => "left",
        }
    }

    /// Tells the manager that holds the session.
    pub(super) async fn tell(self, mut dispatcher: DispatcherClient<Channel>, session_id: String) -> Result<(), Status> {
        let mut request = Request::new(v1::HeartbeatRequest { session_id });
        request.metadata_mut().insert(FAREWELL, MetadataValue::from_static(self.word()));
        let told = tokio::time::timeout(LIMIT, dispatcher.heartbeat(request)).await;
        told.map_err(|_| Status::deadline_exceeded("the last heartbeat took too long"))?.map(|_| ())
    }
}

/// Ends when this node goes; never if the agent is dropped instead.
pub(super) async fn said(mut farewell: watch::Receiver<Option<Farewell>>) -> Farewell {
    let word = farewell.wait_for(Option::is_some).await.ok().and_then(|word| *word);
    match word {
        Some(word) => word,
        None => std::future::pending().await,
    }
}
