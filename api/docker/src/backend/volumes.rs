//! What the endpoints of volumes need of this node.

use crate::ApiError;
use async_trait::async_trait;
use skep_types::{Labels, Timestamp};

/// A volume of this node's own driver, `local`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub mountpoint: String,
    pub created_at: Timestamp,
    pub labels: Labels,
    /// Of its driver.
    pub options: Labels,
    /// Nobody gave it its name.
    pub is_anonymous: bool,
    /// Tasks of this node that have it, or are about to.
    pub users: Vec<String>,
}

/// The volumes of this node.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    async fn list(&self) -> Result<Vec<Volume>, ApiError>;

    /// Makes it; the same again is the same. An empty name: an anonymous one.
    async fn create(&self, name: &str, labels: Labels, options: Labels) -> Result<Volume, ApiError>;

    /// Removes it with all that is in it, unless somebody uses it.
    async fn remove(&self, name: &str) -> Result<(), ApiError>;

    /// Bytes of the files in it; looks at each of them.
    async fn size(&self, name: &str) -> Result<u64, ApiError>;
}
