//! What the endpoints of images need of this node.

use super::Tar;
use crate::ApiError;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use skep_types::{HealthConfig, Labels, Timestamp};

/// An image of this node under all its names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…` of the configuration.
    pub id: String,
    /// Such as `nginx:1.27`.
    pub tags: Vec<String>,
    /// Such as `nginx@sha256:…`.
    pub digests: Vec<String>,
    pub created_at: Option<Timestamp>,
    pub author: String,
    pub architecture: String,
    pub os: String,
    pub variant: String,
    /// Bytes, packed.
    pub size: u64,
    pub config: ImageSettings,
    /// `sha256:…` of what each layer unpacks to, lowest first.
    pub layers: Vec<String>,
    /// Bytes of each, packed.
    pub layer_sizes: Vec<u64>,
    /// Newest last.
    pub history: Vec<HistoryEntry>,
}

/// What a container takes over unless told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSettings {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
    pub labels: Labels,
    pub volumes: Vec<String>,
    pub exposed_ports: Vec<String>,
    pub health: Option<HealthConfig>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryEntry {
    pub created_at: Option<Timestamp>,
    pub created_by: String,
    pub comment: String,
    pub is_empty_layer: bool,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullNews {
    Layer {
        /// 12 hexadecimal digits.
        id: String,
        step: PullStep,
        done: u64,
        total: u64,
    },
    /// The last: what is there now.
    Done { digest: String, is_new: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullStep {
    Waiting,
    Downloading,
    Retrying,
    Downloaded,
    Unpacking,
    Unpacked,
}

/// An image of an archive to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedImage {
    /// `sha256:…`
    pub id: String,
    /// A name that it has here.
    pub known_as: String,
    /// Those that it is to have in the archive.
    pub names: Vec<String>,
}

/// How far a push is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushNews {
    Layer {
        /// 12 hexadecimal digits of what the layer unpacks to.
        id: String,
        step: PushStep,
        done: u64,
        total: u64,
    },
    /// The last: what the registry has now. `size` is the manifest's.
    Done { tag: String, digest: String, size: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushStep {
    Waiting,
    /// The registry has it already.
    Exists,
    Sending,
    Sent,
}

/// What became of a name or an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    Untagged(String),
    Deleted(String),
}

/// What a registry says of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    pub media_type: String,
    /// `sha256:…` of what the name means: the index where there are several platforms.
    pub digest: String,
    pub size: u64,
    pub platforms: Vec<ImagePlatform>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagePlatform {
    pub architecture: String,
    pub os: String,
    pub variant: String,
}

/// The images of this node. `auth` is the header `X-Registry-Auth` as it came, empty if none did.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    async fn list(&self) -> Result<Vec<Image>, ApiError>;

    /// The news until the last one. The pull goes on as long as the stream is asked for more; dropped, it ends unless others wait for it.
    async fn pull(&self, reference: &str, auth: &str) -> Result<BoxStream<'static, Result<PullNews, ApiError>>, ApiError>;

    /// The names of the images that were in the archive.
    async fn load(&self, archive: Tar) -> Result<Vec<String>, ApiError>;

    /// An archive of these images that [`load`](Self::load) and dockerd take. It ends with an error if it cannot be whole.
    async fn save(&self, images: Vec<SavedImage>) -> Result<Tar, ApiError>;

    /// Sends the image of this name to its registry: the news until the last one. Dropped, the push ends.
    async fn push(&self, reference: &str, auth: &str) -> Result<BoxStream<'static, Result<PushNews, ApiError>>, ApiError>;

    /// Gives the image that is meant by `image`, a name, a further name.
    async fn tag(&self, image: &str, reference: &str) -> Result<(), ApiError>;

    /// Takes a name away; the image goes with its last one.
    async fn untag(&self, reference: &str) -> Result<(), ApiError>;

    async fn distribution(&self, reference: &str, auth: &str) -> Result<Distribution, ApiError>;
}
