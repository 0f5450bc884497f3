use std::io;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::reference::ReferenceError;
use crate::store::StoreError;

/// Why an archive could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot open archive {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read the archive; it is no tar file, or it is damaged")]
    Read { source: io::Error },
    #[error("archive ends in the middle of a file; it is damaged")]
    CutShort,
    #[error("loading was interrupted")]
    Interrupted,
    #[error("archive holds neither an index.json (OCI layout) nor a manifest.json (docker save)")]
    NotAnImageArchive,
    #[error("archive holds no image")]
    NoImage,
    #[error("archive holds {images} images and cannot take one name; load it without a name")]
    SeveralImages { images: usize },
    #[error("image {digest} in the archive has no name; load it under a name of your choice")]
    NoName { digest: Digest },
    #[error("archive names an image {name:?}, which is no valid reference")]
    BadName { name: String, source: ReferenceError },
    #[error("archive has a path {path:?} that leads out of it; refused")]
    UnsafePath { path: String },
    #[error("archive has {path:?} twice; refused")]
    Duplicate { path: String },
    #[error("archive has {path:?} of a kind that image archives do not have; refused")]
    UnsupportedEntry { path: String },
    #[error("archive is too large: more than {limit} {what}")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("{file} in the archive is no valid JSON of its kind")]
    Malformed { file: &'static str, source: serde_json::Error },
    #[error("archive lacks {path:?}, which its manifest names; it is damaged")]
    MissingFile { path: String },
    #[error("archive lacks blob {digest}, which its manifest names; it is damaged, or for another platform")]
    MissingBlob { digest: Digest },
    #[error(transparent)]
    Store(#[from] StoreError),
}
