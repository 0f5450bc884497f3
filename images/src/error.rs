use crate::import::ArchiveError;
use crate::manifest::ManifestError;
use crate::registry::RegistryError;
use crate::store::StoreError;

/// Why an image could not be had, in words that stand in `service ps`.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Archive(ArchiveError),
    #[error("blob {blob} of image {image} ended after {got} of {expected} bytes, again and again")]
    CutShort { image: String, blob: String, got: u64, expected: u64 },
    #[error("blob {blob} of image {image} is longer than the {expected} bytes its manifest names; the registry is broken")]
    TooMuch { image: String, blob: String, expected: u64 },
    #[error("image {image} is not complete in containerd any more; pull it again")]
    Incomplete { image: String },
}

impl From<ArchiveError> for ImageError {
    fn from(error: ArchiveError) -> Self {
        match error {
            // containerd's refusals are the same wherever the blob came from.
            ArchiveError::Store(error) => Self::Store(error),
            error => Self::Archive(error),
        }
    }
}

impl ImageError {
    /// Whether a later attempt with the same request may succeed without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Store(error) => error.is_transient(),
            Self::CutShort { .. } => true,
            Self::Manifest(_) | Self::Archive(_) | Self::TooMuch { .. } | Self::Incomplete { .. } => false,
        }
    }
}
