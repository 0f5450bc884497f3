//! The way to the Docker API of other nodes.

use crate::ApiError;
use async_trait::async_trait;
use skep_types::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection on which [`answer`](crate::answer) answers at the other end.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Reaches what nodes answer about the containers of their tasks.
#[async_trait]
pub trait Reach: Send + Sync {
    /// A connection of its own for one request. It ends when it is dropped.
    ///
    /// # Errors
    /// 503 and why, if the node cannot be reached now.
    async fn dial(&self, node: &NodeId) -> Result<Box<dyn Connection>, ApiError>;
}
