//! Ctrl-C and SIGTERM end the run at the next wait, as an error, so that everything made is taken away on the way out.

#![allow(unsafe_code, reason = "setting a signal handler; blocking the signals instead would be inherited by every program started")]

use anyhow::{Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: i32) {
    STOP.store(true, Ordering::Relaxed);
}

/// # Errors
/// If the handlers cannot be set.
pub fn listen() -> Result<()> {
    // Whoever asks twice does not want to wait: the second signal meets the default again.
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::SA_RESTART | SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores into an atomic, which is async-signal-safe, and lives for ever.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// # Errors
/// If the run was interrupted.
pub fn check() -> Result<()> {
    ensure!(!STOP.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
