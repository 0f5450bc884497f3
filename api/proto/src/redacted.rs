//! `Debug` for the messages whose contents must not be printed.

use std::fmt;

macro_rules! redacted {
    ($($message:ty),+ $(,)?) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(concat!(stringify!($message), " { (sensitive) }"))
            }
        })+
    };
}

redacted!(
    crate::v1::SecretSpec,
    crate::v1::ConfigSpec,
    crate::v1::JoinTokens,
    crate::v1::EncryptionKey,
    crate::v1::RootCa,
    crate::v1::RootRotation,
    crate::v1::CaConfig,
    crate::v1::IssueNodeCertificateRequest,
    crate::v1::GetUnlockKeyResponse,
    crate::v1::container_spec::PullOptions,
    crate::skep::InitResponse,
    crate::skep::JoinRequest,
    crate::skep::UnlockRequest,
    crate::skep::BackupRequest,
    crate::skep::RestoreStart,
    crate::skep::PullImageRequest,
    crate::skep::ResolveImageRequest,
);
