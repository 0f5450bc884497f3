//! The one loop of process 1.

use crate::sys;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

/// Why the command's own status cannot be told.
#[derive(Debug)]
pub enum InitError {
    Start { program: OsString, source: io::Error },
    Own { step: &'static str, source: io::Error },
}

impl InitError {
    /// As a shell's (POSIX, Shell Command Language 2.8.2): 127 = not found, 126 = found but not executable. 125, as Docker's:
    /// it is not the command that failed.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Start { .. } => 126,
            Self::Own { .. } => 125,
        }
    }
}

impl fmt::Display for InitError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { program, .. } if self.status() == 127 => {
                write!(out, "executable file not found: {program:?}; is it in the image, in its PATH, with its interpreter?")
            }
            Self::Start { program, source } => {
                write!(out, "{program:?} cannot be executed: {source}; is it a program with the execute bit set?")
            }
            Self::Own { step, source } => write!(out, "could not {step}: {source}"),
        }
    }
}

impl std::error::Error for InitError {}

fn own(step: &'static str) -> impl Fn(Errno) -> InitError {
    move |errno| InitError::Own { step, source: errno.into() }
}

struct Init {
    signals: SignalFd,
    child: Child,
}

/// Starts the command and stays until it ends; returns the status to end with. Whatever else still runs then ends with the
/// process namespace.
///
/// Blocks every signal of the calling thread, for good. As any other process than 1 it becomes the reaper of its descendants.
///
/// # Errors
/// If the command cannot be started, or signals cannot be read.
pub fn supervise(program: &OsStr, arguments: &[OsString]) -> Result<u8, InitError> {
    // All of them: those that a fault raises are not held back by a mask, those that somebody sends are to be passed on.
    // What is blocked also reaches a process 1 that has no handler for it (kernel/signal.c, sig_ignored).
    let all = SigSet::all();
    all.thread_block().map_err(own("block signals"))?;
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC).map_err(own("read signals"))?;
    if std::process::id() != 1 {
        prctl::set_child_subreaper(true).map_err(own("become the reaper"))?;
    }
    let mut command = Command::new(program);
    // A group of its own, so that what is typed on a terminal reaches it from the kernel and not from here once more.
    command.args(arguments).process_group(0);
    sys::unblock_in_child(&mut command, io::stdin().is_terminal());
    let child = command.spawn().map_err(|source| InitError::Start { program: program.to_owned(), source })?;
    Init { signals, child }.attend()
}

impl Init {
    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn attend(&self) -> Result<u8, InitError> {
        loop {
            let signal = match self.signals.read_signal() {
                Ok(Some(info)) => info.ssi_signo.cast_signed(),
                Ok(None) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(own("read signals")(errno)),
            };
            if signal != libc::SIGCHLD {
                self.pass_on(signal);
            } else if let Some(status) = self.reap()? {
                return Ok(status);
            }
        }
    }

    /// Every child that has ended: several may, for one signal. The status of the command if it is among them.
    fn reap(&self) -> Result<Option<u8>, InitError> {
        let mut ended = None;
        while let Some((pid, status)) = sys::reap().map_err(|source| InitError::Own { step: "wait for children", source })? {
            if pid == self.pid() {
                ended = Some(code(status));
            }
        }
        Ok(ended)
    }

    fn pass_on(&self, signal: i32) {
        match sys::kill(self.pid(), signal) {
            // It has just ended; its SIGCHLD is on the way.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            // The container's error output may be closed.
            Err(error) => drop(writeln!(io::stderr(), "skep-init: could not pass signal {signal} on to process {}: {error}", self.pid())),
            Ok(()) => {}
        }
    }
}

/// As a shell tells it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_as_a_shell_does() {
        let wait_status = |code: i32, signal: i32| code << 8 | signal;
        assert_eq!(code(ExitStatus::from_raw(wait_status(0, 0))), 0);
        assert_eq!(code(ExitStatus::from_raw(wait_status(255, 0))), 255);
        assert_eq!(code(ExitStatus::from_raw(wait_status(0, 15))), 143);
        assert_eq!(code(ExitStatus::from_raw(wait_status(0, 9 | 0x80))), 137, "with a core dump");
        assert_eq!(code(ExitStatus::from_raw(wait_status(0, 37))), 165, "a real-time signal");
    }

    #[test]
    fn a_command_that_cannot_be_started_is_told_apart() {
        let error = |kind: io::ErrorKind| InitError::Start { program: "x".into(), source: kind.into() };
        assert_eq!(error(io::ErrorKind::NotFound).status(), 127);
        assert_eq!(error(io::ErrorKind::PermissionDenied).status(), 126);
        assert!(error(io::ErrorKind::NotFound).to_string().starts_with("executable file not found: \"x\""));
        assert_eq!(own("read signals")(Errno::EMFILE).status(), 125);
    }
}
