//! The terminal that swarmctl runs in, lent to a program elsewhere: every key goes there as it is typed.

use crate::failure::Failure;
use std::process::{Command, Stdio};

/// The terminal in its raw mode; dropped, it is as it was.
pub struct RawTerminal {
    saved: String,
}

/// `stty` knows how to speak to the terminal on its standard input, which is ours.
fn stty(arguments: &[&str]) -> Result<String, Failure> {
    let told = Command::new("stty").args(arguments).stdin(Stdio::inherit()).stderr(Stdio::piped()).output();
    let told = told.map_err(|error| Failure::failed(format!("a terminal needs the program stty of coreutils: {error}")))?;
    if !told.status.success() {
        return Err(Failure::failed(format!("the terminal cannot be set: {}", String::from_utf8_lossy(&told.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

impl RawTerminal {
    /// # Errors
    /// If standard input is no terminal, or cannot be set.
    pub fn enter() -> Result<Self, Failure> {
        let saved = stty(&["-g"]).map_err(|_| Failure::failed("the input is not a terminal; leave -t out"))?;
        stty(&["raw", "-echo"])?;
        Ok(Self { saved })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = stty(&[&self.saved]); // a terminal that is gone needs nothing any more
    }
}

/// Rows and columns.
pub fn size() -> (u16, u16) {
    console::Term::stdout().size()
}
