//! Why something could not be done, in words for people: they end in `swarmctl service ps`.

use std::io;
use std::path::PathBuf;

/// What stops the agent as a whole.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("could not use {path}; it must be a directory that only root can write")]
    Directory { path: PathBuf, source: io::Error },
    #[error("could not find out what runs on this node")]
    Survey(#[source] ExecError),
    #[error("the agent's part {0} ended unexpectedly")]
    PartEnded(&'static str),
}

/// An image that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("no such image: {reference}: {reason}")]
    NotFound { reference: String, reason: String },
    #[error("bad image reference {reference:?}: {reason}")]
    BadReference { reference: String, reason: String },
    #[error("image {reference} cannot be used: {reason}")]
    Unusable { reference: String, reason: String },
    #[error("the image store is not reachable: {reason}")]
    Unavailable { reason: String },
}

/// A network that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("port {port}/{protocol} of this node is already taken by {holder}")]
    PortTaken { port: u32, protocol: &'static str, holder: String },
    #[error(
        "no port of the range {first}-{last}/{protocol} of this node is free; the last is taken by {holder}; publish another range, or end \
         what holds one of them"
    )]
    RangeTaken { first: u32, last: u32, protocol: &'static str, holder: String },
    #[error("network {network} cannot be joined: {reason}")]
    BadNetwork { network: String, reason: String },
    #[error("DNS server {resolver:?} of the service is not an IP address; update the service with one that is")]
    BadResolver { resolver: String },
    /// In words that name the container or namespace.
    #[error("{0}")]
    NotAttached(String),
    /// In words that name the network and the link of this host.
    #[error("{0}")]
    NotOnLan(String),
    #[error("could not {step} the network: {reason}")]
    Kernel { step: &'static str, reason: String },
    #[error("no keys for encrypted networks: {reason}")]
    Keys { reason: String },
}

/// An operation on a container that failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Place(#[from] crate::places::PlaceError),
    #[error(transparent)]
    Template(#[from] skep_types::template::TemplateError),
    #[error("this task is not a container")]
    NotAContainer,
    #[error("the image has no command and the service gives none; add a command to the service")]
    NoCommand,
    #[error("executable file not found: {command:?}; is it in the image, in its PATH, with its interpreter?")]
    CommandNotFound { command: String },
    #[error("permission denied: {command:?} cannot be executed; is it a program with the execute bit set?")]
    CommandNotExecutable { command: String },
    #[error("mount source {path} does not exist on this node; make it or use a volume")]
    MountSourceMissing { path: String },
    #[error("could not mount volume {volume} (type {kind}, device {device}){cure}")]
    VolumeMount { volume: String, kind: String, device: String, cure: &'static str, source: io::Error },
    #[error("volumes {volumes} could not be mounted within {seconds} s; is their server reachable from this node?")]
    VolumeTimeout { volumes: String, seconds: u64 },
    #[error("user {user:?}: {reason}")]
    BadUser { user: String, reason: &'static str },
    #[error("working directory {dir:?} cannot be used: {reason}")]
    BadWorkingDir { dir: String, reason: String },
    #[error("{what} is not supported by this node{cure}")]
    Unsupported { what: String, cure: &'static str },
    #[error("{field}: {problem}")]
    BadSpec { field: &'static str, problem: String },
    #[error(
        "this node has no init process (--init), looked for at {places}; copy skep-init, which `make release` makes, next to skepd, or update the service with --init=false"
    )]
    InitMissing { places: String },
    #[error("{path} cannot be the init process (--init): {reason}; replace it by the one that `make release` makes")]
    InitUnusable { path: PathBuf, reason: &'static str },
    #[error("{kind} {name} has not arrived at this node yet")]
    PayloadMissing { kind: &'static str, name: String },
    #[error("not enough memory for the container: {reason}; raise the memory limit")]
    NoMemory { reason: String },
    #[error("no space left on this node's disk while trying to {step}")]
    NoSpace { step: &'static str },
    #[error("containerd could not {step}: {reason}")]
    Runtime { step: &'static str, reason: String },
    #[error("containerd is not reachable at {socket}: {reason}")]
    Unreachable { socket: PathBuf, reason: String },
    #[error("containerd did not {step} within {seconds} s")]
    Timeout { step: &'static str, seconds: u64 },
    #[error("could not {step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("the log writer did not answer: {reason}")]
    LogWriter { reason: String },
    #[error("log driver {name:?} is not supported by this node; use json-file or none")]
    LogDriver { name: String },
    #[error("log option {option}: {problem}")]
    LogOption { option: String, problem: &'static str },
}

impl ExecError {
    /// Whether the same may work a second later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Image(ImageError::Unavailable { .. })
                | Self::Unreachable { .. }
                | Self::Timeout { .. }
                | Self::PayloadMissing { .. }
                | Self::LogWriter { .. }
                | Self::NoSpace { .. }
                | Self::Network(NetworkError::Kernel { .. })
        )
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn words(&self) -> String {
        chain(self)
    }

    pub(crate) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoSpace { step },
            _ => Self::Io { step, path, source },
        }
    }
}

/// An error and its causes, joined with colons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}
