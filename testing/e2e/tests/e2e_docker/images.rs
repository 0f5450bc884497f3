//! `docker save`, `load`, `push`, `pull`: images that leave a host and come back.

use crate::box_image::load;
use crate::support::{SOON, command, docker, inspect, lab, ok, request};
use anyhow::{Result, ensure};
use skep_kit::{Host, eventually, run};
use std::process::{Child, Stdio};

/// Debian's docker-registry on the host's loopback.
pub struct Registry {
    server: Child,
}

impl Registry {
    /// `None`, said loudly, where it is not installed.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn start(lab: &Host) -> Result<Option<Self>> {
        if run("docker-registry", &["--version"]).map_or(true, |output| output.status != 0) {
            ensure!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "cannot run: docker-registry is not installed");
            eprintln!("SKIPPED: docker push: docker-registry is not installed");
            return Ok(None);
        }
        let file = lab.dir().join("registry.yml");
        let root = lab.dir().join("registry-data");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:5000\n",
            root.display()
        );
        std::fs::write(&file, text)?;
        let mut server = lab.host_command("docker-registry");
        server.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { server: server.spawn()? };
        eventually(SOON, "the registry answers", || lab.curl_on_host("http://127.0.0.1:5000/v2/").map(|_| ()))?;
        Ok(Some(registry))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill(); // it may have ended
        let _ = self.server.wait();
    }
}

/// A script with the client as `$D`.
fn script(on: &Host, text: &str) -> Result<String> {
    run("timeout", &["300", "sh", "-c", &format!("D='{}'; {text}", command(on)?.join(" "))])?.success()
}

#[test]
fn images_leave_in_archives_and_to_registries() -> Result<()> {
    let Some(lab) = lab("docker save and push")? else { return Ok(()) };
    load(&lab)?;
    let id = |name: &str| -> Result<String> { Ok(inspect(&lab, &["image", "inspect", name])?["Id"].to_string()) };
    let before = id("box:1")?;
    ok(&lab, &["tag", "box:1", "some/box:two"])?;
    let file = lab.dir().join("saved.tar").to_string_lossy().into_owned();
    ok(&lab, &["save", "-o", &file, "box:1", "some/box:two"])?;
    ok(&lab, &["rmi", "box:1", "some/box:two"])?;
    ensure!(ok(&lab, &["images", "-q", "box"])?.is_empty() && docker(&lab, &["inspect", "some/box:two"])?.status == 1, "an image is left");
    ensure!(ok(&lab, &["load", "-i", &file])? == "Loaded image: box:1\nLoaded image: some/box:two\n");
    ensure!(id("box:1")? == before && id("some/box:two")? == before);
    ensure!(ok(&lab, &["run", "--rm", "some/box:two", "echo", "whole"])? == "whole\n");
    ensure!(script(&lab, "$D save box | $D load -q")? == "Loaded image: box:1\n");
    let names = script(&lab, "$D save $($D images -q box:1) | tar -xO manifest.json")?;
    ensure!(names.contains(r#""RepoTags":null"#), "{names}");
    let refused = docker(&lab, &["save", "-o", &file, "box:1", "none:1"])?;
    ensure!(refused.status == 1 && refused.stderr.contains("No such image: none:1"), "{refused:?}");
    ensure!(request(&lab, "GET", "/images/get", None)?.0 == 400);

    let Some(_registry) = Registry::start(&lab)? else { return Ok(()) };
    let name = "127.0.0.1:5000/team/box";
    ok(&lab, &["tag", "box:1", &format!("{name}:v1")])?;
    let told = ok(&lab, &["push", &format!("{name}:v1")])?;
    let lines: Vec<&str> = told.lines().collect();
    ensure!(lines.first() == Some(&"The push refers to repository [127.0.0.1:5000/team/box]"), "{told}");
    ensure!(told.contains(": Pushed") && lines.last().is_some_and(|last| last.starts_with("v1: digest: sha256:")), "{told}");
    ok(&lab, &["tag", "box:1", &format!("{name}:v2")])?;
    let told = ok(&lab, &["push", "-a", name])?;
    ensure!(told.contains("Layer already exists") && !told.contains(": Pushed"), "{told}");
    ensure!(told.contains("v1: digest:") && told.contains("v2: digest:"), "{told}");
    let missing = docker(&lab, &["push", &format!("{name}:v3")])?;
    ensure!(
        missing.status == 1 && missing.stderr.contains(&format!("An image does not exist locally with the tag: {name}")),
        "{missing:?}"
    );
    ok(&lab, &["rmi", &format!("{name}:v1"), &format!("{name}:v2"), "box:1", "some/box:two"])?;
    ok(&lab, &["pull", &format!("{name}:v2")])?;
    ensure!(id(&format!("{name}:v2"))? == before);
    // Where nobody listens.
    ok(&lab, &["tag", &format!("{name}:v2"), "127.0.0.1:1/x:1"])?;
    let refused = docker(&lab, &["push", "127.0.0.1:1/x:1"])?;
    ensure!(refused.status == 1 && refused.stderr.contains("cannot connect to registry 127.0.0.1:1"), "{refused:?}");
    Ok(())
}
