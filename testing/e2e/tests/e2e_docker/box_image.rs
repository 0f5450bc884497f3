//! A small image with a shell, given to a host by `docker load`, or by a registry of its own.

use crate::support::{SOON, ok};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use skep_kit::{Host, Lab, eventually, run};
use std::path::Path;
use std::process::{Child, Stdio};

const PROGRAMS: &[&str] = &[
    "sh", "sleep", "echo", "cat", "true", "false", "id", "pwd", "env", "ls", "head", "wc", "test", "touch", "ln", "seq", "stty", "tty",
    "ping",
];

fn sha256(path: &Path) -> Result<String> {
    let text = run("sha256sum", &[&path.to_string_lossy()])?.success()?;
    Ok(text.split_whitespace().next().context("no digest")?.to_owned())
}

/// Beside the shell.
#[derive(Debug, Default, Clone, Copy)]
pub struct Extra<'a> {
    /// Programs of this machine, and where they are in the image.
    pub programs: &'a [(&'a Path, &'a str)],
    pub environment: &'a [&'a str],
}

/// `box:1`: busybox and the directories that programs expect.
///
/// # Errors
/// If this machine has no static busybox, or the image is not taken.
pub fn load(lab: &Lab) -> Result<()> {
    load_as(lab, &["box:1"], &["sh"], Extra::default())
}

/// The same under other names, with another command and more in it.
///
/// # Errors
/// See [`load`].
pub fn load_as(on: &Host, names: &[&str], command: &[&str], extra: Extra<'_>) -> Result<()> {
    let dir = on.dir().join("box");
    let root = dir.join("root");
    for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    let busybox = run("which", &["busybox"])?.success().context("this test needs busybox, statically linked")?;
    std::fs::copy(busybox.trim(), root.join("bin/busybox"))?;
    for program in PROGRAMS {
        let link = root.join("bin").join(program);
        if !link.is_symlink() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    for (from, to) in extra.programs {
        std::fs::copy(from, root.join(to.trim_start_matches('/')))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\n")?;
    let layer = dir.join("layer.tar");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    run("tar", &["-C", &text(&root), "--owner=0", "--group=0", "-cf", &text(&layer), "."])?.success()?;
    let environment: Vec<&str> = ["PATH=/bin"].iter().chain(extra.environment).copied().collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": environment, "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "busybox"}],
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"]}]);
    std::fs::write(dir.join("manifest.json"), manifest.to_string())?;
    let archive = dir.join("box.tar");
    run("tar", &["-C", &text(&dir), "-cf", &text(&archive), "manifest.json", "config.json", "layer.tar"])?.success()?;
    ok(on, &["load", "-i", &text(&archive)])?;
    Ok(())
}

/// A registry on the host's loopback that has the image of [`load`]; files are enough for one.
pub struct Registry {
    server: Child,
    /// By which name the image is pulled.
    pub image: String,
}

impl Registry {
    /// # Errors
    /// If the server does not come up.
    pub fn start(lab: &Lab) -> Result<Self> {
        let (made, root) = (lab.dir().join("box"), lab.dir().join("registry"));
        let (blobs, manifests) = (root.join("v2/box/blobs"), root.join("v2/box/manifests"));
        std::fs::create_dir_all(&blobs)?;
        std::fs::create_dir_all(&manifests)?;
        let blob = |name: &str, kind: &str| -> Result<String> {
            let from = made.join(name);
            let digest = format!("sha256:{}", sha256(&from)?);
            std::fs::copy(&from, blobs.join(&digest))?;
            Ok(format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{}}}"#, from.metadata()?.len()))
        };
        let (config, layer) = (blob("config.json", "config.v1+json")?, blob("layer.tar", "layer.v1.tar")?);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        std::fs::write(
            manifests.join("v1"),
            format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{config},"layers":[{layer}]}}"#),
        )?;
        let mut server = lab.host_command("busybox");
        server
            .args(["httpd", "-f", "-p", "127.0.0.1:5000", "-h"])
            .arg(&root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let this = Self { server: server.spawn()?, image: "127.0.0.1:5000/box:v1".into() };
        eventually(SOON, "the registry answers", || {
            ensure!(lab.curl_on_host("http://127.0.0.1:5000/v2/box/manifests/v1")?.contains("schemaVersion"));
            Ok(())
        })?;
        Ok(this)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill(); // it may have ended
        let _ = self.server.wait();
    }
}
