use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What a command wrote and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    /// Exit status; 128 + signal if it was killed.
    pub status: i32,
}

impl Output {
    /// The standard output of a command that succeeded.
    ///
    /// # Errors
    /// If it did not, with what it wrote.
    pub fn success(self) -> Result<String> {
        ensure!(self.status == 0, "exit status {}: {}{}", self.status, self.stderr, self.stdout);
        Ok(self.stdout)
    }
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started; how it ended is for the caller to judge.
pub fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    use std::os::unix::process::ExitStatusExt;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    let status = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    Ok(Output {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        status,
    })
}

/// A program of this workspace, built beforehand (`make` builds them), next to the running test.
///
/// # Errors
/// If it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Ok(dir) = std::env::var("SKEP_BIN_DIR") {
        return Ok(PathBuf::from(dir).join(name));
    }
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("{name} was not built; run `cargo build -p {name}` (or `make test`) first"),
    }
}

/// The archive of the demonstration image, made beforehand by `scripts/demo-image`.
///
/// # Errors
/// If it was not made.
pub fn whoami_image() -> Result<PathBuf> {
    binary("whoami.tar").context("the demonstration image is missing; scripts/demo-image makes it")
}
