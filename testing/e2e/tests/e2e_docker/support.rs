//! A host, and the genuine client beside it.

use anyhow::{Context as _, Result};
use serde_json::Value;
use skep_kit::{Lab, LabOptions, Output, need_root, run};
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

fn has_client(test: &str) -> bool {
    if run("docker", &["--version"]).is_ok_and(|output| output.status == 0) {
        return true;
    }
    assert!(std::env::var("SKEP_REQUIRE_REAL").is_err(), "{test} was meant to run here but needs the docker command line");
    println!("SKIPPED: {test}: needs the docker command line");
    eprintln!("SKIPPED: {test}: needs the docker command line");
    false
}

/// The client with a configuration of its own; ended after five minutes.
pub fn docker(lab: &Lab, arguments: &[&str]) -> Result<Output> {
    let host = format!("DOCKER_HOST=unix://{}", lab.run_dir().join("docker.sock").display());
    let config = format!("DOCKER_CONFIG={}", lab.dir().join("docker-config").display());
    let mut all = vec!["300", "env", "-u", "DOCKER_CONTEXT", &host, &config, "docker"];
    all.extend(arguments);
    run("timeout", &all)
}

/// What the client prints when it succeeds.
pub fn ok(lab: &Lab, arguments: &[&str]) -> Result<String> {
    docker(lab, arguments)?.success().with_context(|| format!("docker {}", arguments.join(" ")))
}

/// The first object that an inspect command prints.
pub fn inspect(lab: &Lab, arguments: &[&str]) -> Result<Value> {
    let text = ok(lab, arguments)?;
    let objects: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    objects.get(0).cloned().with_context(|| format!("nothing in {text}"))
}

/// A request to the socket: status and body.
pub fn request(lab: &Lab, method: &str, path: &str, body: Option<&str>) -> Result<(u16, String)> {
    let socket = lab.run_dir().join("docker.sock").to_string_lossy().into_owned();
    let url = format!("http://docker{path}");
    let mut arguments = vec!["-sS", "--max-time", "60", "--unix-socket", &socket, "-X", method, "-w", "\n%{http_code}", &url];
    if let Some(body) = body {
        arguments.extend(["-H", "Content-Type: application/json", "--data-binary", body]);
    }
    let text = run("curl", &arguments)?.success()?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.trim().parse()?, body.to_owned()))
}
