//! Talking to registries: OCI distribution-spec v1.1.

mod challenge; // what a 401 asks for; pure
mod endpoint; // which host, http or https; pure
mod http; // the implementation

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::auth::Auth;
use crate::digest::Digest;
use crate::reference::Reference;

pub use self::endpoint::RegistryConfig;
pub use self::http::HttpRegistry;

/// Where images come from. One value serves all registries; the reference names the one to ask.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Fetches the manifest or index that `version` (tag or digest) names in the repository of `reference`.
    ///
    /// The answer has been verified against its digest and is at most [`MAX_MANIFEST`](crate::MAX_MANIFEST) long.
    async fn manifest(&self, reference: &Reference, version: &str, auth: Option<&Auth>) -> Result<FetchedManifest, RegistryError>;

    /// Opens the blob `digest` for reading from byte `offset`. Nothing is verified: the reader has to.
    async fn blob(&self, reference: &Reference, digest: &Digest, offset: u64, auth: Option<&Auth>) -> Result<BlobStream, RegistryError>;

    /// Whether the repository of `reference` has the blob already.
    async fn has_blob(&self, reference: &Reference, digest: &Digest, auth: Option<&Auth>) -> Result<bool, RegistryError>;

    /// Puts a blob into the repository of `reference`.
    async fn send_blob(&self, reference: &Reference, blob: &OutgoingBlob, auth: Option<&Auth>) -> Result<(), RegistryError>;

    /// Puts a manifest under `version` (tag or digest) into the repository of `reference`, which must have all its blobs.
    async fn send_manifest(
        &self,
        reference: &Reference,
        version: &str,
        media_type: &str,
        data: Bytes,
        auth: Option<&Auth>,
    ) -> Result<(), RegistryError>;
}

/// A manifest as a registry sent it.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    pub data: Bytes,
    pub digest: Digest,
    /// The `Content-Type`, without parameters.
    pub media_type: Option<String>,
}

/// A blob on its way.
pub struct BlobStream {
    /// Where the stream begins: 0 if the registry cannot begin in the middle, whatever was asked.
    pub offset: u64,
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
}

/// A blob on its way out.
pub struct OutgoingBlob {
    pub digest: Digest,
    pub length: u64,
    /// Gives its bytes, anew for each attempt.
    pub open: Box<dyn Fn() -> BoxStream<'static, io::Result<Bytes>> + Send + Sync>,
}

/// Why a registry did not give what was asked, in words for `service ps`.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("no such image: {image}")]
    NoSuchImage { image: String },
    #[error("registry {host} has no blob {digest} of image {image}; the image is incomplete there, push it again")]
    NoSuchBlob { image: String, host: String, digest: Digest },
    #[error(
        "registry {host} refused access to {image}: no such repository, or it needs a log-in; \
         pass credentials with --with-registry-auth"
    )]
    AccessDenied { image: String, host: String },
    #[error("registry {host} refused the credentials given for {image}; log in again")]
    Unauthorised { image: String, host: String },
    #[error("credentials for {image} were given for another registry; log in to {host}")]
    ForeignCredentials { image: String, host: String },
    #[error("no such host: registry {host}; check the name and the resolver")]
    NoSuchHost { host: String },
    #[error("cannot connect to registry {host}")]
    Unreachable { host: String, source: reqwest::Error },
    #[error(
        "no TLS with registry {host}: its certificate is not trusted or it speaks plain HTTP; \
         install its CA certificate, or list it under insecure registries"
    )]
    Tls { host: String, source: reqwest::Error },
    #[error("timeout: registry {host} did not answer in time")]
    Timeout { host: String },
    #[error("registry {host} limits the rate of pulls; log in for more, or wait")]
    TooManyRequests { host: String, retry_after: Option<Duration> },
    #[error("registry {host} answered {status}")]
    Status { host: String, status: u16 },
    #[error("connection to registry {host} broke off")]
    BrokenOff { host: String, source: reqwest::Error },
    #[error("wrong digest: registry {host} sent a manifest {actual} for {expected}")]
    WrongDigest { host: String, expected: String, actual: Digest },
    #[error("registry {host} sent an answer of more than {limit} bytes where that much makes no sense")]
    TooLong { host: String, limit: u64 },
    #[error("registry {host} asks for authentication in a way that is not understood: {problem}")]
    BadChallenge { host: String, problem: &'static str },
    #[error("registry {host} sent an answer that is not understood: {problem}")]
    BadAnswer { host: String, problem: &'static str },
    #[error("no HTTP client can be made for registries; the process needs a TLS provider and CA certificates")]
    Client { source: reqwest::Error },
    #[error("no TLS provider is installed in this process")]
    NoTlsProvider,
}

impl RegistryError {
    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::TooManyRequests { .. }
            | Self::BrokenOff { .. }
            | Self::NoSuchHost { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 408,
            Self::NoSuchImage { .. }
            | Self::NoSuchBlob { .. }
            | Self::AccessDenied { .. }
            | Self::Unauthorised { .. }
            | Self::ForeignCredentials { .. }
            | Self::Tls { .. }
            | Self::WrongDigest { .. }
            | Self::TooLong { .. }
            | Self::BadChallenge { .. }
            | Self::BadAnswer { .. }
            | Self::Client { .. }
            | Self::NoTlsProvider => false,
        }
    }
}
