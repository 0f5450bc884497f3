//! Why something cannot be done with a container.

use crate::error::ExecError;
use std::io;
use std::path::PathBuf;

/// Why not, in words for people.
#[derive(Debug, thiserror::Error)]
pub enum ContainersError {
    #[error("No such container: {container}")]
    NotFound { container: String },
    #[error("The container name \"/{name}\" is already in use by container \"{container}\"")]
    NameTaken { name: String, container: String },
    #[error("container {container} is running")]
    Running { container: String },
    #[error("container {container} is a task's; its service decides about it")]
    OfTask { container: String },
    #[error("No such exec instance: {exec}")]
    NoSuchExec { exec: String },
    #[error("container {container} is not running")]
    NotRunning { container: String },
    #[error("container {container} is paused, unpause the container before exec")]
    Paused { container: String },
    #[error("Container {container} is already paused")]
    AlreadyPaused { container: String },
    #[error("Container {container} is not paused")]
    NotPaused { container: String },
    #[error("Error: Exec command {exec} has already run")]
    AlreadyRun { exec: String },
    #[error("No exec command specified")]
    NoCommand,
    #[error("there are {limit} execs of this node at once; wait until some have ended")]
    TooManyExecs { limit: usize },
    #[error("invalid signal: {signal}")]
    BadSignal { signal: String },
    #[error("exec {exec} has no terminal, or is not running")]
    NoTerminal { exec: String },
    #[error("Could not find the file {path} in container {container}")]
    NoSuchFile { container: String, path: String },
    #[error("{path}: {problem}")]
    BadFile { path: String, problem: String },
    #[error("nothing answers at port {port} of container {container}: {reason}")]
    NoPort { container: String, port: u16, reason: String },
    #[error("container {container} has its host's network, which nobody is led into; ask the host itself")]
    OnHostNetwork { container: String },
    #[error("configured logging driver does not support reading")]
    NoLogs,
    #[error("{problem}")]
    BadVolumeOptions { problem: String },
    #[error("volume {volume} exists with other driver options; remove it first, or use another name")]
    OtherVolumeOptions { volume: String },
    #[error("get {volume}: no such volume")]
    NoSuchVolume { volume: String },
    #[error(
        "{volume:?} includes invalid characters for a local volume name; use letters, digits, '_', '.' and '-', and begin with one of the first two"
    )]
    BadVolumeName { volume: String },
    #[error("container {container} runs on networks that know it by its name; stop it before it is renamed")]
    NamedOnNetworks { container: String },
    #[error("endpoint with name {name} already exists in network {network}")]
    OnNetwork { name: String, network: String },
    #[error("container {container} is not connected to network {network}")]
    NotOnNetwork { container: String, network: String },
    #[error("container cannot be disconnected from host network or connected to host network")]
    HostNetwork,
    #[error("container cannot be connected to multiple networks with one of the networks in private (none) mode")]
    NoNetwork,
    #[error("network {network} is the hosts' own (macvlan): a container is put on it or taken off while it does not run; stop it first")]
    HostsOwnNetwork { network: String },
    #[error(transparent)]
    Executor(#[from] ExecError),
    #[error("could not {step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("the program ps cannot be run on this node: {reason}; install the package procps")]
    NoPs { reason: String },
    #[error("ps: {words}")]
    Ps { words: String },
    #[error("this node's agent is ending")]
    Ending,
}

impl ContainersError {
    pub(crate) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path, source }
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn words(&self) -> String {
        crate::error::chain(self)
    }
}
