//! Real clients, each as its ordinary package manager brings it: testing/clients.

use crate::support::lab;
use anyhow::{Result, ensure};
use skep_kit::{binary, need_root};
use std::path::Path;
use std::process::{Command, Stdio};

/// Longer than all installations and all clients take on a starved machine, in seconds.
const LIMIT: &str = "2400";

#[test]
fn clients_of_all_kinds_work_unchanged() -> Result<()> {
    let name = "real clients of the Docker API";
    if !need_root(name) || skep_kit::is_left_out(name) {
        return Ok(());
    }
    let Some(lab) = lab(name)? else { return Ok(()) };
    crate::box_image::load(&lab)?;
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients/run");
    let programs = binary("skepd")?;
    // Beside the programs: what was installed once serves again.
    let installed = programs.parent().and_then(Path::parent).unwrap_or(Path::new("/tmp")).join("clients");
    let status = Command::new("timeout")
        .args(["--kill-after=10", LIMIT])
        .arg(&run)
        .arg(lab.run_dir().join("docker.sock"))
        .env("CLIENTS_DIR", installed)
        .env("CLIENTS_NETNS", lab.host_namespace())
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "{}: {status}", run.display());
    Ok(())
}
