use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Asks again every 20 ms, and less often the longer it takes (asking costs the machine something, too), until `probe` gives a
/// value; after `limit` the last reason is the error.
///
/// # Errors
/// The last error of `probe`, with the time waited.
pub fn eventually<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => bail!("{what}: not within {limit:?}: {error:#}"),
            Err(_) => std::thread::sleep((start.elapsed() / 8).clamp(Duration::from_millis(20), Duration::from_millis(250))),
        }
    }
}

/// Whether tests that make namespaces and containers can run here. Says why not, and fails where they were meant to run.
#[must_use]
pub fn need_root(test: &str) -> bool {
    let missing: Vec<&str> =
        ["containerd", "runc", "nft", "ip", "nsenter", "ctr", "curl"].into_iter().filter(|tool| !in_path(tool)).collect();
    let reason = if !nix::unistd::geteuid().is_root() {
        "needs root".to_owned()
    } else if !missing.is_empty() {
        format!("needs {}", missing.join(", "))
    } else {
        return true;
    };
    assert!(std::env::var("SKEP_REQUIRE_REAL").is_err(), "{test} was meant to run here but {reason}");
    println!("SKIPPED: {test}: {reason}");
    eprintln!("SKIPPED: {test}: {reason}");
    false
}

fn in_path(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| std::path::Path::new(dir).join(tool).exists())
}
