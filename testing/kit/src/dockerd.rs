//! Debian's dockerd 20.10, unpacked and not installed, as `scripts/dockerd-peer` sets it up.

use crate::process::{Output, binary, run, whoami_image};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A dockerd with a containerd, cgroup and mount namespace of its own, in a network namespace that somebody else laid a cable to.
/// Ended and removed when dropped.
#[derive(Debug)]
pub struct Dockerd {
    name: String,
    address: String,
    facts: BTreeMap<String, String>,
}

impl Dockerd {
    /// `namespace` is its name as well.
    ///
    /// # Errors
    /// If it cannot be started; what was made is removed.
    pub(crate) fn start(namespace: &str, address: String) -> Result<Self> {
        let mut peer = Self { name: namespace.to_owned(), address, facts: BTreeMap::new() };
        script(&["start", namespace], &[("PEER_NETNS", namespace)])?;
        let facts = script(&["env", namespace], &[])?;
        peer.facts = facts.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(peer)
    }

    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where its API answers.
    #[must_use]
    pub fn socket(&self) -> &str {
        &self.facts["SOCKET"]
    }

    /// Its own command line against it; ended after a minute.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn docker(&self, arguments: &[&str]) -> Result<Output> {
        let (program, host) = (distribution()?.join("usr/bin/docker"), format!("unix://{}", self.socket()));
        let program = program.to_string_lossy();
        run("timeout", &[&["60", &program, "--host", &host][..], arguments].concat())
    }

    /// Where that command line is.
    ///
    /// # Errors
    /// If it was not fetched.
    pub fn client(&self) -> Result<PathBuf> {
        Ok(distribution()?.join("usr/bin/docker"))
    }

    /// Loads the demonstration image, as `whoami:latest`.
    ///
    /// # Errors
    /// If it refuses.
    pub fn load_image(&self) -> Result<()> {
        self.docker(&["load", "-q", "-i", &whoami_image()?.to_string_lossy()])?.success().context("docker load")?;
        Ok(())
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = Path::new("/run/skep-dockerd").join(&self.name).join("dockerd.log");
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("end of dockerd's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Err(error) = script(&["stop", &self.name], &[]) {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// Whether there is a dockerd to test against. Says why not, and fails where it was meant to be (`SKEP_REQUIRE_REAL=1`).
#[must_use]
pub fn need_dockerd(test: &str) -> bool {
    match distribution().and_then(|dir| {
        ensure!(dir.join("usr/sbin/dockerd").exists(), "no dockerd in {}: run `scripts/dockerd-peer fetch`", dir.display());
        Ok(())
    }) {
        Ok(()) => true,
        Err(reason) => {
            assert!(std::env::var("SKEP_REQUIRE_REAL").is_err(), "{test} was meant to run here but {reason:#}");
            println!("SKIPPED: {test}: {reason:#}");
            eprintln!("SKIPPED: {test}: {reason:#}");
            false
        }
    }
}

/// What a killed test left of peers whose names begin so.
pub(crate) fn stop_leftovers(tag: &str) {
    for entry in std::fs::read_dir("/run/skep-dockerd").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(tag).is_some_and(|rest| rest.starts_with('d'))
            && let Err(error) = script(&["stop", &name], &[])
        {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// `$PEER_DIST`, or where `make` puts it: below cargo's target directory.
fn distribution() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("PEER_DIST") {
        return Ok(dir.into());
    }
    let programs = binary("skepd")?;
    let target = programs.parent().and_then(Path::parent).context("skepd is in a directory of cargo's")?;
    Ok(target.join("peers/docker"))
}

fn script(arguments: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/dockerd-peer");
    // Daemons it leaves behind keep what they inherit: only `env` has an output to wait for.
    let stdout = if arguments[0] == "env" { Stdio::piped() } else { Stdio::null() };
    let mut command = Command::new(&path);
    command.args(arguments).env("PEER_DIST", distribution()?).envs(environment.iter().copied());
    let output = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} {} failed", path.display(), arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
