//! A loop of `ctr run -d`: what containerd costs when nobody orchestrates it.
//!
//! Same image, Docker's seccomp profile, a network namespace of its own (new and empty: `ctr` makes no veth), the same bind
//! mount. `ctr` has no supervisor, no logs, no status to keep.

use super::at_a_time;
use crate::contender::{Contender, Marks, Traces, poll};
use crate::cpu::{Group, group_path};
use crate::remains::Places;
use crate::stamp::{self, Stamps, TARGET};
use anyhow::{Context, Result};
use skep_kit::run;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// `ctr` on a socket and in a namespace.
///
/// # Errors
/// If it fails, with what it wrote.
pub fn ctr(socket: &Path, namespace: &str, arguments: &[&str]) -> Result<String> {
    let socket = socket.to_str().context("the path is UTF-8")?;
    let all = [&["-n", namespace, "-a", socket], arguments].concat();
    run("ctr", &all)?.success().with_context(|| format!("ctr {}", arguments.join(" ")))
}

/// containerd, its group, and where it is.
#[derive(Debug, Clone)]
pub struct Containerd {
    pub socket: PathBuf,
    pub state: PathBuf,
    pub group: Arc<Group>,
}

#[derive(Debug)]
pub struct Ctr {
    name: String,
    namespace: String,
    containerd: Containerd,
    image: String,
    parallelism: usize,
    clients: Group,
    stamps: Stamps,
    traces: Traces,
    running: Vec<String>,
    made: usize,
}

impl Ctr {
    /// Loads the image into a namespace of this contender's own.
    ///
    /// # Errors
    /// If containerd refuses.
    pub fn new(containerd: Containerd, archive: &Path, parallelism: usize, stamps: Stamps) -> Result<Self> {
        let namespace = format!("skbench{}c{parallelism}", std::process::id());
        ctr(&containerd.socket, &namespace, &["image", "import", &archive.to_string_lossy()])?;
        let images = ctr(&containerd.socket, &namespace, &["image", "ls", "-q"])?;
        let image = images.lines().next().context("the archive held no image")?.to_owned();
        let places = Places {
            mountinfo: "/proc/self/mountinfo".into(),
            mounts_below: vec![containerd.state.join("io.containerd.runtime.v2.task").join(&namespace)],
            namespaces: Vec::new(),
            cgroups: vec![namespace.clone()],
            shim: format!("-namespace {namespace} "),
        };
        Ok(Self {
            name: format!("ctr x{parallelism}"),
            clients: Group::new(&format!("{namespace}-clients"))?,
            traces: Traces::before(places),
            namespace,
            containerd,
            image,
            parallelism,
            stamps,
            running: Vec::new(),
            made: 0,
        })
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        ctr(&self.containerd.socket, &self.namespace, arguments)
    }

    fn run_one(&self, id: &str) -> Result<()> {
        let mount = format!("type=bind,src={},dst={TARGET},options=rbind:rw", self.stamps.dir().display());
        let command = Stamps::command();
        let mut arguments = vec!["run", "-d", "--seccomp", "--mount", &mount, &self.image, id];
        arguments.extend(command.iter().map(String::as_str));
        self.clients.run(|| self.ctr(&arguments)).map(drop)
    }

    fn remove_one(&self, id: &str) -> Result<()> {
        self.clients.run(|| {
            self.ctr(&["task", "kill", "-s", "SIGTERM", id])?;
            // It ends at once, but `task rm` refuses until containerd knows.
            poll("ctr task rm", || Ok(self.ctr(&["task", "rm", id]).is_ok()))?;
            self.ctr(&["container", "rm", id]).map(drop)
        })
    }
}

impl Contender for Ctr {
    fn name(&self) -> &str {
        &self.name
    }

    fn tree(&self) -> Vec<PathBuf> {
        vec![self.clients.path().to_owned(), self.containerd.group.path().to_owned(), group_path(&self.namespace)]
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
        poll("ctr's tasks wrote their stamps", || {
            stamps.extend(self.stamps.read());
            Ok(stamps.len() >= count)
        })?;
        self.traces.note_shims();
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

    fn update(&mut self) -> Result<Option<Marks>> {
        self.made += 1;
        let old = std::mem::take(&mut self.running);
        let began = Instant::now();
        for (index, old) in old.iter().enumerate() {
            self.remove_one(old)?;
            let new = format!("t{}-{index}", self.made);
            self.running.push(new.clone());
            self.run_one(&new)?;
        }
        let updated = began.elapsed().as_secs_f64();
        self.traces.note_shims();
        Ok(Some(vec![("updated", updated)]))
    }
}

impl Drop for Ctr {
    fn drop(&mut self) {
        for id in &self.running {
            let _ = self.ctr(&["task", "rm", "-f", id]);
            let _ = self.ctr(&["container", "rm", id]);
        }
        crate::remains::remove_groups(&self.namespace);
    }
}
