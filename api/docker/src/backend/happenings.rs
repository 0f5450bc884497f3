//! What happens on this node and in the cluster, for those who listen.

use crate::ApiError;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use skep_types::{Labels, Timestamp};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// `container`, `image`, `volume`, `network`, `service`, `node`, `secret`, `config`.
    pub kind: &'static str,
    /// Such as `die`, or `exec_create: sh`.
    pub action: String,
    pub id: String,
    pub attributes: Labels,
    pub time: Timestamp,
    /// On this node only; else in the cluster.
    pub is_local: bool,
}

/// Tells what happens.
#[async_trait]
pub trait Happenings: Send + Sync + 'static {
    /// What is remembered, oldest first, and from then on what happens. A listener that is too slow misses some.
    async fn listen(&self) -> Result<(Vec<Happening>, BoxStream<'static, Happening>), ApiError>;
}
