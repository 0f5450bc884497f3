//! Debian's dockerd 20.10 in swarm mode, spoken to over its API; set up as `scripts/dockerd-peer` says.

use crate::contender::{Contender, Marks, Traces, poll};
use crate::cpu::group_path;
use crate::http::{Http, query};
use crate::remains::{Places, init_pids};
use crate::stamp::{self, Stamps, TARGET};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Which network its tasks get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's: dockerd's quickest start, and its slowest stop.
    Host,
    /// Its default bridge: a namespace of the task's own, as ours have.
    Bridge,
}

/// The running daemon; ended and removed when dropped.
#[derive(Debug)]
pub struct Peer {
    name: String,
    facts: BTreeMap<String, String>,
}

impl Peer {
    /// # Errors
    /// If it cannot be started; what was made is removed.
    pub fn start(program: &Path) -> Result<Self> {
        let peer = Self::bare()?;
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(program.parent().context("a file has a directory")?).args(["-c", "--owner=0", "--group=0"]);
        let archive = tar.arg(program.file_name().context("a file has a name")?).output()?;
        ensure!(archive.status.success(), "tar: {}", String::from_utf8_lossy(&archive.stderr));
        Http::connect(&peer.path("SOCKET"))?.call(
            "POST",
            "/images/create?fromSrc=-&repo=whoami&tag=latest",
            "application/x-tar",
            &archive.stdout,
        )?;
        Ok(peer)
    }

    /// Without any image.
    ///
    /// # Errors
    /// If it cannot be started; what was made is removed.
    pub fn bare() -> Result<Self> {
        let mut peer = Self { name: format!("bench{}", std::process::id()), facts: BTreeMap::new() };
        script(&["start", &peer.name])?;
        let facts = script(&["env", &peer.name])?;
        peer.facts = facts.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(peer)
    }

    #[must_use]
    pub fn path(&self, fact: &str) -> PathBuf {
        self.facts.get(fact).map(PathBuf::from).unwrap_or_default()
    }

    /// The file of its network namespace.
    #[must_use]
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/skepd-{}", self.name))
    }

    /// Process ids of dockerd and of its containerd.
    #[must_use]
    pub fn daemons(&self) -> Vec<u32> {
        ["DOCKERD", "CONTAINERD"].iter().filter_map(|fact| self.facts.get(*fact)?.parse().ok()).collect()
    }

    #[must_use]
    pub fn group(&self) -> PathBuf {
        group_path(&self.facts["CGROUP"])
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = script(&["stop", &self.name]) {
            eprintln!("clean-up: {error:#}");
        }
    }
}

fn script(arguments: &[&str]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/dockerd-peer");
    // Daemons it leaves behind keep what they inherit: only `env` has an output to wait for.
    let stdout = if arguments[0] == "env" { Stdio::piped() } else { Stdio::null() };
    let output = Command::new(&path).args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} {} failed", path.display(), arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Services of whoami on dockerd.
#[derive(Debug)]
pub struct Dockerd {
    name: &'static str,
    peer: Arc<Peer>,
    network: Network,
    http: Http,
    stamps: Stamps,
    traces: Traces,
    service: Option<String>,
    made: usize,
}

impl Dockerd {
    /// # Errors
    /// If the daemon does not answer.
    pub fn new(peer: Arc<Peer>, network: Network, stamps: Stamps) -> Result<Self> {
        let places = Places {
            mountinfo: PathBuf::from(format!("/proc/{}/mountinfo", peer.facts["DOCKERD"])),
            mounts_below: vec![peer.path("DATA"), peer.path("STATE"), peer.path("NETNS")],
            // Its namespaces are mounts; the empty files they were mounted on stay for up to a minute, which is not held against it.
            namespaces: Vec::new(),
            cgroups: vec![format!("{}/containers", peer.facts["CGROUP"])],
            shim: peer.path("STATE").parent().context("the state directory has a parent")?.display().to_string(),
        };
        let name = if network == Network::Host { "dockerd host net" } else { "dockerd bridge" };
        let http = Http::connect(&peer.path("SOCKET"))?;
        let mut this = Self { name, http, network, stamps, traces: Traces::before(places), service: None, made: 0, peer };
        this.start(1)?;
        this.ask_to_remove()?;
        eprintln!("{name} keeps {:?}", this.traces.keep_what_stays()?);
        Ok(this)
    }

    fn ask_to_remove(&mut self) -> Result<()> {
        if let Some(service) = self.service.take() {
            self.http.json("DELETE", &format!("/services/{service}"), &Value::Null)?;
        }
        Ok(())
    }

    fn spec(&self, name: &str, count: usize) -> Value {
        let networks = if self.network == Network::Host { json!([{"Target": "host"}]) } else { json!([]) };
        json!({
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "whoami:latest",
                    "Command": Stamps::command(),
                    "Mounts": [{"Type": "bind", "Source": self.stamps.dir(), "Target": TARGET}],
                },
                "RestartPolicy": {"Condition": "any", "Delay": 0},
                "Networks": networks,
            },
            "Mode": {"Replicated": {"Replicas": count}},
            "EndpointSpec": {"Mode": "dnsrr"},
        })
    }

    fn tasks(&mut self) -> Result<Value> {
        let service = self.service.as_ref().context("no service was made")?;
        let filter = query(&json!({"service": [service]}).to_string());
        self.http.json("GET", &format!("/tasks?filters={filter}"), &Value::Null)
    }

    /// What dockerd says of a task that does not run.
    fn problem(&mut self) -> Option<String> {
        let tasks = self.tasks().ok()?;
        let status = tasks.as_array()?.iter().map(|task| &task["Status"]).find(|status| status["State"] != "running")?;
        Some(status.to_string())
    }

    /// Ids of the service's tasks that run.
    fn running(&mut self) -> Result<Vec<String>> {
        let tasks = self.tasks()?;
        let running = tasks.as_array().into_iter().flatten().filter(|task| task["Status"]["State"] == "running");
        Ok(running.filter_map(|task| task["ID"].as_str().map(str::to_owned)).collect())
    }
}

impl Contender for Dockerd {
    fn name(&self) -> &str {
        self.name
    }

    fn tree(&self) -> Vec<PathBuf> {
        vec![self.peer.group()]
    }

    fn start(&mut self, count: usize) -> Result<Marks> {
        self.stamps.read();
        self.made += 1;
        let spec = self.spec(&format!("bench-{}-{}", self.name.replace(' ', "-"), self.made), count);
        let (began, clock) = (Instant::now(), stamp::now());
        let answer = self.http.json("POST", "/services/create", &spec)?;
        self.service = answer["ID"].as_str().map(str::to_owned);
        let mut stamps = Vec::new();
        poll("dockerd's tasks run", || {
            stamps.extend(self.stamps.read());
            Ok(self.running()?.len() == count)
        })
        .map_err(|error| error.context(format!("first problem: {:?}", self.problem())))?;
        let running = began.elapsed().as_secs_f64();
        poll("dockerd's tasks wrote their stamps", || {
            stamps.extend(self.stamps.read());
            Ok(stamps.len() >= count)
        })?;
        let first = stamps.iter().fold(0.0f64, |last, stamp| last.max(stamp - clock));
        self.traces.note_shims();
        Ok(vec![("running", running), ("first instruction", first)])
    }

    fn remove(&mut self) -> Result<Marks> {
        let began = Instant::now();
        self.ask_to_remove()?;
        self.traces.wait_until_gone()?;
        Ok(vec![("gone", began.elapsed().as_secs_f64())])
    }

    fn heal(&mut self) -> Result<Option<Marks>> {
        let before = self.running()?;
        let pid = *init_pids(&self.peer.path("STATE"), "moby").first().context("dockerd runs no task")?;
        let began = Instant::now();
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
        poll("dockerd replaces the task", || {
            let now = self.running()?;
            Ok(now.len() == before.len() && now.iter().any(|id| !before.contains(id)))
        })?;
        let healed = began.elapsed().as_secs_f64();
        self.traces.note_shims();
        Ok(Some(vec![("healed", healed)]))
    }

    fn update(&mut self) -> Result<Option<Marks>> {
        let before = self.running()?;
        let service = self.service.clone().context("no service was made")?;
        let found = self.http.json("GET", &format!("/services/{service}"), &Value::Null)?;
        let mut spec = found["Spec"].clone();
        spec["TaskTemplate"]["ForceUpdate"] = json!(spec["TaskTemplate"]["ForceUpdate"].as_u64().unwrap_or(0) + 1);
        let began = Instant::now();
        self.http.json("POST", &format!("/services/{service}/update?version={}", found["Version"]["Index"]), &spec)?;
        poll("dockerd's tasks are new ones", || {
            let now = self.running()?;
            Ok(now.len() == before.len() && !now.iter().any(|id| before.contains(id)))
        })?;
        let updated = began.elapsed().as_secs_f64();
        self.traces.note_shims();
        Ok(Some(vec![("updated", updated)]))
    }
}
