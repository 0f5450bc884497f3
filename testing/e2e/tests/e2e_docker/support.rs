//! A host, and the genuine client beside it.

use anyhow::{Context as _, Result};
use serde_json::Value;
use skep_kit::{Cluster, Host, Lab, LabOptions, Output, Size, need_root, run};
use std::time::Duration;

/// Something that must happen, on a machine that may be ten times slower.
pub const SOON: Duration = Duration::from_secs(90);

/// A swarm of one host; `None`, said loudly, where the test cannot run.
pub fn lab(test: &str) -> Result<Option<Lab>> {
    if !need_root(test) || !has_client(test) {
        return Ok(None);
    }
    Lab::swarm(LabOptions::default()).map(Some)
}

/// A host that is in no swarm yet.
pub fn alone(test: &str) -> Result<Option<Lab>> {
    if !need_root(test) || !has_client(test) {
        return Ok(None);
    }
    let mut lab = Lab::new(LabOptions::default())?;
    lab.start_skepd()?;
    Ok(Some(lab))
}

/// Hosts that are in no swarm yet.
pub fn hosts(test: &str, size: Size) -> Result<Option<Cluster>> {
    if !need_root(test) || !has_client(test) {
        return Ok(None);
    }
    Cluster::hosts(size).map(Some)
}

/// The genuine client: the one that `SKEP_DOCKER` names, the machine's, or Debian's 20.10 where `scripts/dockerd-peer fetch` put it.
pub fn client() -> Option<String> {
    let named = std::env::var("SKEP_DOCKER").ok();
    let fetched = std::env::var("PEER_DIST").ok().map(|dir| format!("{dir}/usr/bin/docker"));
    let known = [named, Some("docker".to_owned()), fetched].into_iter().flatten();
    known.into_iter().find(|program| run(program, &["--version"]).is_ok_and(|output| output.status == 0))
}

/// 20.10 knows fewer flags than 28.
pub fn is_old_client() -> bool {
    let version = client().and_then(|program| run(&program, &["--version"]).ok()).map(|output| output.stdout).unwrap_or_default();
    version.contains("version 20.")
}

/// No failure where tests are meant to run: nothing that the build installs brings a client.
pub fn has_client(test: &str) -> bool {
    if client().is_some() {
        return true;
    }
    println!("SKIPPED: {test}: needs the docker command line");
    eprintln!("SKIPPED: {test}: needs the docker command line");
    false
}

/// The client against a host, with a configuration of its own.
pub fn command(on: &Host) -> Result<Vec<String>> {
    let host = format!("DOCKER_HOST=unix://{}", on.run_dir().join("docker.sock").display());
    let config = format!("DOCKER_CONFIG={}", on.dir().join("docker-config").display());
    let program = client().context("the client was there when the test began")?;
    Ok(["env", "-u", "DOCKER_CONTEXT", &host, &config, &program].map(str::to_owned).to_vec())
}

/// The client; ended after five minutes.
pub fn docker(on: &Host, arguments: &[&str]) -> Result<Output> {
    let command = command(on)?;
    let all: Vec<&str> = ["300"].into_iter().chain(command.iter().map(String::as_str)).chain(arguments.iter().copied()).collect();
    run("timeout", &all)
}

/// What the client prints when it succeeds.
pub fn ok(on: &Host, arguments: &[&str]) -> Result<String> {
    docker(on, arguments)?.success().with_context(|| format!("docker {}", arguments.join(" ")))
}

/// The first object that an inspect command prints.
pub fn inspect(on: &Host, arguments: &[&str]) -> Result<Value> {
    let text = ok(on, arguments)?;
    let objects: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    objects.get(0).cloned().with_context(|| format!("nothing in {text}"))
}

/// A request to a host's socket: status and body.
pub fn request(on: &Host, method: &str, path: &str, body: Option<&str>) -> Result<(u16, String)> {
    request_at(&on.run_dir().join("docker.sock").to_string_lossy(), method, path, body)
}

/// A request to any socket.
pub fn request_at(socket: &str, method: &str, path: &str, body: Option<&str>) -> Result<(u16, String)> {
    let url = format!("http://docker{path}");
    let mut arguments = vec!["-sS", "--max-time", "60", "--unix-socket", socket, "-X", method, "-w", "\n%{http_code}", &url];
    if let Some(body) = body {
        arguments.extend(["-H", "Content-Type: application/json", "--data-binary", body]);
    }
    let text = run("curl", &arguments)?.success()?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.trim().parse()?, body.to_owned()))
}
