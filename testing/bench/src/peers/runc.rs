//! The floor: runc alone, on an overlay of the same files, with the specification our own agent generated.
//!
//! No containerd, no shim, no supervisor, no logs. Each container gets an overlay mount, a new (empty) network namespace,
//! the same seccomp profile, capabilities, masked paths and cgroup.

use super::at_a_time;
use crate::contender::{Contender, Marks, Traces, poll};
use crate::cpu::{Group, group_path};
use crate::remains::{Places, lives};
use crate::stamp::{self, Stamps, TARGET};
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use skep_kit::run;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

#[derive(Debug)]
pub struct Runc {
    name: String,
    group: String,
    /// Below it: `root` (runc's own state), `image` (the lower directory), a directory for each container.
    dir: PathBuf,
    spec: Value,
    parallelism: usize,
    clients: Group,
    stamps: Stamps,
    traces: Traces,
    running: Vec<String>,
    made: usize,
}

impl Runc {
    /// `spec` is one generated for the same task; its paths are replaced.
    ///
    /// # Errors
    /// If the directories cannot be made.
    pub fn new(dir: PathBuf, program: &Path, spec: &Value, parallelism: usize, stamps: Stamps) -> Result<Self> {
        let group = format!("skbench{}r{parallelism}", std::process::id());
        let image = dir.join("image");
        for sub in ["proc", "dev", "sys", "etc", "stamp"] {
            std::fs::create_dir_all(image.join(sub))?;
        }
        std::fs::copy(program, image.join("whoami"))?;
        let places = Places {
            mountinfo: "/proc/self/mountinfo".into(),
            mounts_below: vec![dir.clone()],
            namespaces: Vec::new(),
            cgroups: vec![group.clone()],
            shim: "no shim".into(),
        };
        let spec = adjusted(spec, &dir, stamps.dir());
        Ok(Self {
            name: format!("runc x{parallelism}"),
            clients: Group::new(&format!("{group}-clients"))?,
            traces: Traces::before(places),
            group,
            dir,
            spec,
            parallelism,
            stamps,
            running: Vec::new(),
            made: 0,
        })
    }

    fn runc(&self, arguments: &[&str]) -> Result<String> {
        let root = self.dir.join("root");
        run("runc", &[&["--root", &root.to_string_lossy()], arguments].concat())?.success().context("runc")
    }

    fn run_one(&self, id: &str) -> Result<()> {
        let bundle = self.dir.join(id);
        for sub in ["upper", "work", "rootfs"] {
            std::fs::create_dir_all(bundle.join(sub))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.dir.join("image").display(),
            bundle.join("upper").display(),
            bundle.join("work").display()
        );
        let mut spec = self.spec.clone();
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", self.group));
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
        self.clients.run(|| {
            mount(Some("overlay"), &bundle.join("rootfs"), Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
            // Not through pipes: the container would keep them open.
            let status = Command::new("runc")
                .arg("--root")
                .arg(self.dir.join("root"))
                .args(["run", "-d", "--pid-file"])
                .arg(bundle.join("pid"))
                .arg("--bundle")
                .arg(&bundle)
                .arg(id)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(std::fs::File::options().create(true).append(true).open(self.dir.join("log"))?)
                .status()?;
            let log = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            anyhow::ensure!(status.success(), "runc run: {status}: {}", log());
            Ok(())
        })
    }

    fn remove_one(&self, id: &str) -> Result<()> {
        let bundle = self.dir.join(id);
        let pid: u32 = std::fs::read_to_string(bundle.join("pid"))?.trim().parse()?;
        self.clients.run(|| {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
            while lives(pid) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            self.runc(&["delete", id])?;
            umount2(&bundle.join("rootfs"), MntFlags::MNT_DETACH)?;
            std::fs::remove_dir_all(&bundle)?;
            Ok(())
        })
    }
}

/// The generated specification with a root, mounts and namespaces that need neither containerd nor skepd.
fn adjusted(spec: &Value, dir: &Path, stamps: &Path) -> Value {
    let mut spec = spec.clone();
    spec["root"] = json!({"path": "rootfs"});
    spec["process"]["args"] = json!(Stamps::command());
    // Files that skepd or containerd made for another container are replaced by one that stays.
    let _ = std::fs::write(dir.join("etc"), "127.0.0.1 localhost\n");
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        let bind = mount["options"].as_array().is_some_and(|options| options.iter().any(|option| option == "bind" || option == "rbind"));
        if bind {
            let stamp = mount["destination"] == TARGET;
            mount["source"] = if stamp { json!(stamps) } else { json!(dir.join("etc")) };
        }
    }
    for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        if let Some(fields) = namespace.as_object_mut() {
            fields.remove("path");
        }
    }
    spec.as_object_mut().map(|fields| fields.remove("hooks"));
    spec
}

impl Contender for Runc {
    fn name(&self) -> &str {
        &self.name
    }

    fn tree(&self) -> Vec<PathBuf> {
        vec![self.clients.path().to_owned(), group_path(&self.group)]
    }

    fn start(&mut self, count: usize) -> Result<Marks> {
        self.stamps.read();
        self.made += 1;
        let ids: Vec<String> = (0..count).map(|index| format!("t{}-{index}", self.made)).collect();
        self.running.clone_from(&ids);
        let (began, clock) = (Instant::now(), stamp::now());
        let this = &*self;
        at_a_time(self.parallelism, count, |index| this.run_one(&ids[index]))?;
        let running = began.elapsed().as_secs_f64();
        let mut stamps = Vec::new();
        poll("runc's containers wrote their stamps", || {
            stamps.extend(self.stamps.read());
            Ok(stamps.len() >= count)
        })?;
        Ok(vec![("running", running), ("first instruction", stamps.iter().fold(0.0f64, |last, stamp| last.max(stamp - clock)))])
    }

    fn remove(&mut self) -> Result<Marks> {
        let ids = std::mem::take(&mut self.running);
        let began = Instant::now();
        let this = &*self;
        at_a_time(self.parallelism, ids.len(), |index| this.remove_one(&ids[index]))?;
        self.traces.wait_until_gone()?;
        Ok(vec![("gone", began.elapsed().as_secs_f64())])
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        for id in &self.running {
            let _ = self.runc(&["delete", "-f", id]);
            let _ = umount2(&self.dir.join(id).join("rootfs"), MntFlags::MNT_DETACH);
        }
        crate::remains::remove_groups(&self.group);
    }
}
