//! Container images: how a name becomes a root file system in containerd.
//!
//! What this crate does: parses references, asks registries, pulls from them and pushes to them, loads and saves archives, keeps images in containerd's
//! content store, unpacks them by its snapshotter, prepares snapshots for containers, and makes small images.
//! What it does not: it knows no tasks, starts no containers, and decides nothing about when to pull.
//!
//! Start with [`ImageStore`]. It spawns no tasks: a pull runs in its callers ([`ImageStore::pull`]), and only
//! [`ImageStore::load`] uses a blocking thread, which it waits for. The one channel is the caller's, for [`Progress`];
//! what does not fit into it is dropped.
//!
//! ```text
//!  Reference ──► Registry ──► Resolver ──► fetch ──► content store ─┐
//!                                                                   ├─► unpack ──► record ──► Image
//!  archive ────► read_archive ──► found_images ──► content store ───┘                          │
//!                                                                      prepare_snapshot ◄──────┘
//! ```
//!
//! The process must have installed a TLS provider (`rustls`) before the first pull.
mod assembly; // documents from target to configuration; pure
mod auth; // credentials
mod backoff; // waiting between attempts
mod build; // making small images
mod digest; // sha256
mod distribution; // what a registry says of an image
mod error; // what a caller gets
mod gates; // one at a time per key
mod image; // what is known of an image
mod import; // archives
mod manifest; // documents and platforms; pure
mod progress; // what a pull tells
mod pull; // from a registry
mod push; // to a registry
mod reference; // names
mod registry; // the other side
mod save; // out into an archive
mod store; // containerd

pub use containerd_client::types::Mount;

pub use auth::{Auth, AuthError};
pub use build::{BuildError, FileSource, ImageBuilder, ImageConfig, LayerFile, build_image_archive};
pub use digest::{Digest, DigestError, Hasher, chain_id};
pub use distribution::Distribution;
pub use error::ImageError;
pub use image::Image;
pub use import::{ArchiveError, Limits};
pub use manifest::{
    Descriptor, Healthcheck, ImageIndex, ImageManifest, MAX_CONFIG, MAX_MANIFEST, Manifest, ManifestError, Platform, choose_platform,
};
pub use progress::{Phase, Progress};
pub use push::{PushProgress, PushStep, Pushed};
pub use reference::{Reference, ReferenceError};
pub use registry::{BlobStream, FetchedManifest, HttpRegistry, OutgoingBlob, Registry, RegistryConfig, RegistryError};
pub use save::SavedImage;
pub use store::{ImageStore, SnapshotInfo, StoreError};
