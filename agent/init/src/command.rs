//! The command line.

use std::ffi::OsString;
use std::fmt;

/// How the program is called.
pub const USAGE: &str = "usage: skep-init -- COMMAND [ARG...]";

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Start { program: OsString, arguments: Vec<OsString> },
    Version,
}

/// A command line that says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageError {
    NoCommand,
    Unknown(OsString),
}

impl fmt::Display for UsageError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommand => out.write_str("no command is given"),
            Self::Unknown(word) => write!(out, "{word:?} is not known; the command comes after --"),
        }
    }
}

impl std::error::Error for UsageError {}

impl Command {
    /// From the arguments without the program's own name.
    ///
    /// # Errors
    /// If there is no `--` or nothing behind it.
    pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, UsageError> {
        match arguments.next() {
            Some(word) if word == "--" => {}
            Some(word) if word == "--version" => return Ok(Self::Version),
            Some(word) => return Err(UsageError::Unknown(word)),
            None => return Err(UsageError::NoCommand),
        }
        let program = arguments.next().ok_or(UsageError::NoCommand)?;
        Ok(Self::Start { program, arguments: arguments.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Command, UsageError> {
        Command::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn the_command_is_all_that_comes_after_two_dashes() {
        let start = Command::Start { program: "sh".into(), arguments: vec!["-c".into(), "--".into(), "x".into()] };
        assert_eq!(parse(&["--", "sh", "-c", "--", "x"]), Ok(start));
        assert_eq!(parse(&["--version"]), Ok(Command::Version));
    }

    #[test]
    fn a_call_without_a_command_is_refused() {
        assert_eq!(parse(&[]), Err(UsageError::NoCommand));
        assert_eq!(parse(&["--"]), Err(UsageError::NoCommand));
        assert_eq!(parse(&["sh"]).unwrap_err().to_string(), "\"sh\" is not known; the command comes after --");
    }
}
