//! Why there is no certificate, with what to do about it.

use crate::certificate::dial::DialError;
use skep_ca::{BadIdentity, BadKey, BadRoots, BadToken, FileError, SecurityError};
use std::time::Duration;

/// A certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error(transparent)]
    Token(#[from] BadToken),
    #[error("this cluster insists on FIPS algorithms, which skepd does not limit itself to; it cannot be joined")]
    Fips,
    #[error("{address:?} is not HOST:PORT of a manager, such as 10.0.0.1:2377")]
    Address { address: String },
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Something answers, but not as a manager does.
    #[error("what answers at {address} is not a manager of a swarm: {reason}. Give HOST:PORT of a manager, usually port 2377")]
    NotAManager { address: String, reason: String },
    #[error(
        "the root certificates that {address} shows are not those this join token was made for: the token is of another cluster, or older \
         than a rotation of the root, or something in between pretends to be the manager. Nothing was sent to it. Print the present token \
         with `swarmctl cluster join-token worker` (or `manager`) there"
    )]
    Digest { address: String },
    #[error("the root certificates that {address} shows cannot be used")]
    Roots { address: String, source: BadRoots },
    #[error(
        "the cluster at {address} does not take this join token; it was rotated. Print the present one with `swarmctl cluster join-token \
         worker` (or `manager`) there"
    )]
    TokenRefused { address: String },
    #[error("{address} refused the request for a certificate: {reason}")]
    Refused { address: String, reason: String },
    #[error("{address} did not {step} within {} s", limit.as_secs())]
    TimedOut { address: String, step: &'static str, limit: Duration },
    #[error("the certificate that {address} issued cannot be used")]
    Issued { address: String, source: BadIdentity },
    #[error("{address} gave an unlock key that is none")]
    UnlockKey { address: String, source: skep_types::BadUnlockKey },
    #[error("no certificate within {} s; the last try: {last}", limit.as_secs())]
    GaveUp { limit: Duration, last: String },
    #[error("no manager is known to ask for a certificate")]
    NobodyKnown,
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Security(#[from] SecurityError),
}

impl CertificateError {
    /// Whether the same question would get the same answer a moment later, from this manager and from others.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Token(_)
            | Self::Fips
            | Self::Address { .. }
            | Self::Digest { .. }
            | Self::TokenRefused { .. }
            | Self::UnlockKey { .. }
            | Self::NobodyKnown
            | Self::Key(_)
            | Self::File(_)
            | Self::Security(_)
            | Self::GaveUp { .. } => true,
            // A clock that is wrong stays wrong; roots that are being replaced do not.
            Self::Issued { source, .. } => matches!(source, BadIdentity::NotYetValid | BadIdentity::Expired),
            Self::Dial(_) | Self::NotAManager { .. } | Self::Roots { .. } | Self::Refused { .. } | Self::TimedOut { .. } => false,
        }
    }

    /// Whether the caller gave something that it can put right.
    #[must_use]
    pub fn is_the_callers(&self) -> bool {
        matches!(self, Self::Token(_) | Self::Address { .. } | Self::Digest { .. } | Self::TokenRefused { .. })
    }
}
