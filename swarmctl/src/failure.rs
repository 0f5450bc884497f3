//! What went wrong, in words, and the exit status that goes with it.

use crate::connect::NOTHING_CHANGED;
use std::fmt;
use std::path::Path;
use tonic::Code;

/// Exit statuses; 2 (bad command line) is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The request was refused or failed.
    Failed,
    /// What was named does not exist.
    NotFound,
    /// Somebody else changed or took it: look again and repeat.
    Conflict,
    /// No daemon, no manager or no leader answered.
    Unreachable,
    /// The change was accepted, but the cluster did not get there.
    NotConverged,
    /// That of a program which was run; it has said itself what was wrong.
    Program(u8),
}

impl Exit {
    pub fn status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
            Self::NotConverged => 6,
            Self::Program(status) => status,
        }
    }
}

/// An error ready to be printed.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    text: String,
}

impl Failure {
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(Exit::Failed, text)
    }

    pub fn not_found(kind: &str, name: &str, hint: &str) -> Self {
        Self::new(Exit::NotFound, format!("no such {kind}: {name}; {hint}"))
    }

    /// What this node's daemon said of itself: unlike a manager's answer it tells the whole story.
    pub fn of_daemon(status: tonic::Status) -> Self {
        match status.code() {
            Code::Unavailable if std::error::Error::source(&status).is_none() => Self::new(Exit::Unreachable, status.message()),
            _ => Self::from(status),
        }
    }

    pub fn cannot_connect(socket: &Path, error: impl std::error::Error + 'static) -> Self {
        let cause = root_cause(&error);
        let hint = match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(std::io::ErrorKind::NotFound) => "is skepd running? Start it, or name its socket with --socket",
            Some(std::io::ErrorKind::PermissionDenied) => "the socket is root's; use sudo",
            Some(std::io::ErrorKind::ConnectionRefused) => "nobody listens on it; is skepd running?",
            _ => "is this skepd's socket?",
        };
        Self::new(Exit::Unreachable, format!("cannot reach skepd at {}: {cause}; {hint}", socket.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may quote what a node or a container said.
        out.write_str(&crate::output::plain_lines(&self.text))
    }
}

impl std::error::Error for Failure {}

/// The last of an error's causes: the one that says what happened.
fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause
}

/// What to do when nobody answered.
const NO_ANSWER: &str =
    "if this lasts, the managers have lost their majority: start those that are down, or see `swarmctl cluster recover --help`";
const PERHAPS_DONE: &str = "a change may have been made nevertheless, so look before it is repeated";

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let message = status.message();
        // Made here, not by the other side.
        if let Some(cause) = std::error::Error::source(&status) {
            let text = format!("the connection to skepd broke: {}; {PERHAPS_DONE}", root_cause(cause));
            return Self::new(Exit::Unreachable, text);
        }
        match status.code() {
            Code::NotFound => Self::new(Exit::NotFound, message),
            Code::AlreadyExists => Self::new(Exit::Conflict, message),
            Code::Unknown if message.contains("update out of sequence") => {
                Self::new(Exit::Conflict, "somebody else changed it meanwhile (update out of sequence); look again and repeat")
            }
            // Reads were repeated for a while by then (`connect/patient.rs`).
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                let perhaps = match status.metadata().contains_key(NOTHING_CHANGED) {
                    true => String::new(),
                    false => format!("{PERHAPS_DONE}; "),
                };
                Self::new(Exit::Unreachable, format!("no manager answered: {message}; {perhaps}{NO_ANSWER}"))
            }
            Code::Unimplemented if message.is_empty() => {
                Self::new(Exit::Failed, "this node does not offer that; is it a manager? See `swarmctl cluster inspect`")
            }
            _ => Self::new(Exit::Failed, message),
        }
    }
}

impl From<skep_types::FieldError> for Failure {
    fn from(error: skep_types::FieldError) -> Self {
        Self::failed(format!("the manager's answer cannot be read: {error}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}
