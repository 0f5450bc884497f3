//! What the safe wrappers do not cover: their `Signal` has no real-time signals, yet `SIGRTMIN+3` is what programs such as
//! systemd are stopped with, and a child may die of one; and a child's signal mask is set between fork and exec.
#![allow(unsafe_code, reason = "kill(2) and waitpid(2) with plain numbers; a signal mask for the child")]

use nix::sys::signal::SigSet;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

/// Sends a signal.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes two numbers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A child that has ended, which is gone afterwards; `None` if none has.
pub fn reap() -> io::Result<Option<(i32, ExitStatus)>> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one c_int, to a variable that outlives the call.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Ok(None),
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            error => Err(error),
        },
        pid => Ok(Some((pid, ExitStatus::from_raw(status)))),
    }
}

/// Has a command start with no signal blocked, which this process has all of and a child inherits; and, if its input is a
/// terminal, as the group in the foreground.
pub fn unblock_in_child(command: &mut Command, on_terminal: bool) {
    let before_exec = move || {
        if on_terminal {
            // SAFETY: getpid(2) and tcsetpgrp(3) take numbers and touch no memory of ours. In the background the latter would
            // raise SIGTTOU, which is still blocked here.
            // Its failure means that the terminal is not the one that controls this session: nothing is typed at us.
            let _ = unsafe { libc::tcsetpgrp(libc::STDIN_FILENO, libc::getpid()) };
        }
        // What whoever started us had ignored (nohup, a shell in the background) would stay ignored over exec (execve(2)).
        for number in 1..=libc::SIGRTMAX() {
            // SAFETY: signal(2) with the default action installs no code of ours; numbers that cannot be set are refused.
            unsafe { libc::signal(number, libc::SIG_DFL) };
        }
        Ok(SigSet::empty().thread_set_mask()?)
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called and nothing allocated (signal-safety(7)):
    // getpid, tcsetpgrp, signal and pthread_sigmask are such, and their errors are numbers.
    unsafe { command.pre_exec(before_exec) };
}
