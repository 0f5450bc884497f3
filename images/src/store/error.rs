use std::path::PathBuf;

use tonic::Status;

use crate::digest::Digest;
use crate::manifest::ManifestError;

/// Why containerd did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("containerd does not answer at {}; is it running?", socket.display())]
    Unreachable { socket: PathBuf, source: Status },
    #[error("containerd did not finish {doing} {object} in time")]
    Timeout { doing: &'static str, object: String },
    #[error("no space left on the disk of containerd while {doing} {object}; remove unused images or enlarge the disk")]
    NoSpace { doing: &'static str, object: String, source: Status },
    #[error("containerd is busy: {doing} {object}; someone else has it locked")]
    Busy { doing: &'static str, object: String, source: Status },
    #[error("containerd does not have it: {doing} {object}")]
    NotFound { doing: &'static str, object: String, source: Status },
    #[error("containerd has it already: {doing} {object}")]
    AlreadyExists { doing: &'static str, object: String, source: Status },
    #[error("containerd failed at {doing} {object}: {}", source.message())]
    Refused { doing: &'static str, object: String, source: Status },
    #[error("containerd broke its protocol while {doing} {object}")]
    Protocol { doing: &'static str, object: String },
    #[error("wrong digest: what arrived for blob {expected} is something else; the registry or the way to it is broken")]
    WrongDigest { expected: Digest },
    #[error("wrong digest: layer {layer} unpacks to {actual} where the image promises {expected}; the image is broken")]
    WrongDiffId { layer: Digest, expected: Digest, actual: String },
    #[error("blob {digest} is {length} bytes long, more than the {limit} that make sense")]
    TooLong { digest: Digest, length: u64, limit: u64 },
    #[error("snapshot {key} exists with another parent; remove it first")]
    SnapshotTaken { key: String },
    #[error("{namespace:?} is no containerd namespace; it has up to 76 letters, digits, '.', '_' and '-'")]
    BadNamespace { namespace: String },
    #[error("{key:?} cannot name a snapshot or a lease")]
    BadKey { key: String },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl StoreError {
    /// Whether containerd said that the thing is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether a later attempt may succeed without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. } | Self::Busy { .. })
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }

    /// Whether a directory that no snapshot owns has the number of the next one. containerd sends it as `Unknown` with the text of
    /// errno and of its own step, so the text is all there is to go by.
    pub(crate) fn is_orphan_in_the_way(&self) -> bool {
        matches!(self, Self::Refused { source, .. }
            if source.message().contains("failed to rename") && source.message().contains("file exists"))
    }
}

/// `Ok(None)` instead of "not found".
pub(crate) fn found<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
