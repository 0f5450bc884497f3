//! What managers reach on this node by the tunnels that its agent opens: the containers of its tasks.

use futures_util::future::BoxFuture;
use skep_agent::Answer;
use skep_docker_api::{Backend, Front};
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

/// Answers them.
pub struct Visits {
    front: Front,
    stop: CancellationToken,
}

impl Visits {
    /// Until `stop`.
    pub fn new(backend: Backend, stop: &CancellationToken) -> Self {
        Self { front: Front::of_tasks(backend), stop: stop.clone() }
    }
}

impl Answer for Visits {
    fn answer(&self, connection: DuplexStream) -> BoxFuture<'static, ()> {
        Box::pin(skep_docker_api::answer(connection, self.front.clone(), self.stop.child_token()))
    }
}
