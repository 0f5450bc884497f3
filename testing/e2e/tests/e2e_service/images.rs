//! Digests and platforms of images, which `swarmctl service create` asks registries for.

use super::SOON;
use anyhow::{Context, Result, ensure};
use skep_kit::{Lab, LabOptions, eventually, need_root, run};
use std::fs;
use std::process::{Child, Stdio};
use std::time::Instant;

/// Debian's docker-registry on the host's loopback, with an index `team/app:v1`; ended when dropped.
struct Registry(Child);

impl Registry {
    /// `None`, said loudly, where it is not installed.
    fn start(lab: &Lab) -> Result<Option<Self>> {
        if run("docker-registry", &["--version"]).map_or(true, |output| output.status != 0) {
            ensure!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "cannot run: docker-registry is not installed");
            eprintln!("SKIPPED: digests of images: docker-registry is not installed");
            return Ok(None);
        }
        let (file, root) = (lab.dir().join("registry.yml"), lab.dir().join("registry-data"));
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:5000\n",
            root.display()
        );
        fs::write(&file, text)?;
        let mut server = lab.host_command("docker-registry");
        server.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self(server.spawn()?);
        eventually(SOON, "the registry answers", || lab.curl_on_host("http://127.0.0.1:5000/v2/").map(drop))?;
        Ok(Some(registry))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// One request to the registry; the value of a header of its answer.
fn ask(lab: &Lab, arguments: &[&str], header: &str) -> Result<String> {
    let output = lab.host_command("curl").args(["-sf", "-D", "-", "-o", "/dev/null", "--max-time", "10"]).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {text}");
    let line = text
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix(&format!("{header}: ")).map(|_| line[header.len() + 2..].trim().to_owned()));
    line.with_context(|| format!("no {header} in {text}"))
}

const REPOSITORY: &str = "http://127.0.0.1:5000/v2/team/app";

/// Puts a blob into the registry; its digest and size.
fn send_blob(lab: &Lab, data: &str) -> Result<(String, usize)> {
    let file = lab.dir().join("blob");
    fs::write(&file, data)?;
    let digest = format!("sha256:{}", run("sha256sum", &[&file.to_string_lossy()])?.success()?.split(' ').next().context("a sum")?);
    let place = ask(lab, &["-X", "POST", &format!("{REPOSITORY}/blobs/uploads/")], "location")?;
    let place = if place.starts_with('/') { format!("http://127.0.0.1:5000{place}") } else { place };
    let joint = if place.contains('?') { '&' } else { '?' };
    let binary = format!("@{}", file.display());
    ask(
        lab,
        &["-X", "PUT", "-H", "Content-Type: application/octet-stream", "--data-binary", &binary, &format!("{place}{joint}digest={digest}")],
        "docker-content-digest",
    )?;
    Ok((digest, data.len()))
}

/// Puts a manifest there; its digest.
fn send_manifest(lab: &Lab, version: &str, kind: &str, data: &str) -> Result<String> {
    let file = lab.dir().join("manifest");
    fs::write(&file, data)?;
    let (kind, binary) = (format!("Content-Type: {kind}"), format!("@{}", file.display()));
    ask(lab, &["-X", "PUT", "-H", &kind, "--data-binary", &binary, &format!("{REPOSITORY}/manifests/{version}")], "docker-content-digest")
}

/// An image without layers for this architecture; its digest.
fn publish(lab: &Lab, version: &str, architecture: &str, mark: &str) -> Result<String> {
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","author":"{mark}","config":{{}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    let (digest, size) = send_blob(lab, &config)?;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{digest}","size":{size}}},"layers":[]}}"#
    );
    send_manifest(lab, version, "application/vnd.docker.distribution.manifest.v2+json", &manifest)
}

fn inspect(lab: &Lab, service: &str, format: &str) -> Result<String> {
    Ok(lab.ctl(&["service", "inspect", "--format", format, service])?.success()?.trim().to_owned())
}

#[test]
fn a_service_gets_the_digest_and_the_platforms_that_its_registry_tells() -> Result<()> {
    if !need_root("digests of images") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let Some(registry) = Registry::start(&lab)? else { return Ok(()) };
    let name = "127.0.0.1:5000/team/app:v1";
    let image = |service: &str| inspect(&lab, service, "{{.spec.task.runtime.Container.image}}");
    let first = publish(&lab, "v1", "s390x", "first")?;
    let create = |service: &str, flags: &[&str]| lab.ctl(&[&["service", "create", "-d", "--name", service], flags].concat());
    let made = create("app", &[name, "/nothing"])?;
    made.success()?;
    ensure!(image("app")? == format!("{name}@{first}"), "{}", image("app")?);
    // For no node here: the task waits, and it is said why.
    super::explained(&lab, &["service", "app"], &["the image is for linux/s390x"])?;
    let shown = |flags: &[&str]| lab.ctl(&[flags, &["--format", "{{.Image}}"]].concat())?.success();
    ensure!(shown(&["service", "ls"])? == format!("{name}\n") && shown(&["service", "ps", "app"])? == format!("{name}\n"));
    ensure!(shown(&["service", "ps", "--no-trunc", "app"])? == format!("{name}@{first}\n"));

    // The tag has moved: an update that names the image follows it, any other does not.
    let second = publish(&lab, "v1", "amd64", "second")?;
    ensure!(first != second);
    lab.ctl(&["service", "update", "-d", "--label-add", "a=b", "app"])?.success()?;
    ensure!(image("app")? == format!("{name}@{first}"), "{}", image("app")?);
    lab.ctl(&["service", "update", "-d", "--image", name, "app"])?.success()?;
    ensure!(image("app")? == format!("{name}@{second}"), "{}", image("app")?);
    let platforms = inspect(&lab, "app", "{{.spec.task.placement.platforms}}")?;
    ensure!(platforms.contains("amd64") && !platforms.contains("s390x"), "{platforms}");

    // Left as it is if that is wanted, or if nobody knows it.
    create("plain", &["--no-resolve-image", name])?.success()?;
    ensure!(image("plain")? == name, "{}", image("plain")?);
    drop(registry);
    let lost = create("lost", &[name])?;
    ensure!(lost.status == 0 && image("lost")? == name, "{lost:?}");
    let warning =
        format!("image {name} could not be accessed on a registry to record its digest. Each node will access {name} independently");
    ensure!(lost.stderr.contains(&warning) && lost.stderr.contains("cannot connect to registry"), "{lost:?}");
    // A registry that nobody can resolve holds nobody up for ever.
    let began = Instant::now();
    let nowhere = create("nowhere", &["registry.invalid/team/app:v1"])?;
    ensure!(nowhere.status == 0 && nowhere.stderr.contains("could not be accessed"), "{nowhere:?}");
    ensure!(began.elapsed() < SOON, "{:?}", began.elapsed());

    // What an archive brought is not asked for: that would fail, as there is no name server here, and be said.
    let local = create("local", &["whoami"])?;
    ensure!(local.status == 0 && !local.stderr.contains("could not be accessed") && image("local")? == "whoami", "{local:?}");
    Ok(())
}
