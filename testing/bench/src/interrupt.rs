//! Ctrl-C and SIGTERM end the run at the next wait, as an error, so that everything made is taken away on the way out.

use anyhow::{Result, ensure};
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// To be called before any thread starts: they inherit that these signals are not theirs. Programs started do not.
///
/// # Errors
/// If the signals cannot be kept back.
pub fn listen() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            // Whoever asks twice does not want to wait.
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("\nstopping: taking everything away");
        }
    });
    Ok(())
}

/// # Errors
/// If the run was interrupted.
pub fn check() -> Result<()> {
    ensure!(!STOP.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
