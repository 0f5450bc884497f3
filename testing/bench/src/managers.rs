//! Managers without containers: skepd processes beside each other on loopback, each with its own address and files.
//!
//! Their agents find no containerd and stay silent; the nodes are drained, so that no task waits for them.

use crate::api::lazy_channel;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_proto::skep::local_node_client::LocalNodeClient;
use skep_proto::skep::{InitRequest, JoinRequest, StatusRequest, StatusResponse, init_request::Availability};
use skep_proto::v1::{self, control_client::ControlClient};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// A daemon's start, its end, an election: far above what each takes on a starved machine.
const LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(20);
const PORT: u16 = 2377;
/// A listing of all tasks may be as long as this.
const MESSAGE: usize = 1 << 30;

/// Asks until the answer is yes.
///
/// # Errors
/// The first error of the question, or that the answer stayed no.
pub async fn until<F>(what: &str, limit: Duration, step: Duration, mut question: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let deadline = Instant::now() + limit;
    loop {
        crate::interrupt::check()?;
        if question().await? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(step).await;
    }
}

/// One skepd.
#[derive(Debug)]
struct Daemon {
    dir: PathBuf,
    ip: String,
    channel: Channel,
    child: Option<Child>,
}

/// So many skepds that are one cluster. Killed and removed when dropped.
#[derive(Debug)]
pub struct Managers {
    daemons: Vec<Daemon>,
    pub worker_token: String,
    pub manager_token: String,
    names: AtomicU64,
    // Removed after the daemons ended.
    dir: tempfile::TempDir,
}

impl Daemon {
    fn new(dir: PathBuf, number: usize) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let channel = lazy_channel(&dir.join("run/skep.sock"))?;
        Ok(Self { dir, ip: format!("127.0.0.{}", number + 1), channel, child: None })
    }

    fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.join("log"))?;
        let child = Command::new(skep_kit::binary("skepd")?)
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .arg("--run-dir")
            .arg(self.dir.join("run"))
            .arg("--containerd")
            .arg(self.dir.join("no-containerd.sock"))
            .args(["--listen-addr", &format!("{}:{PORT}", self.ip), "--log-level", "info", "--log-format", "text"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    async fn status(&self) -> Result<StatusResponse> {
        let mut client = LocalNodeClient::new(self.channel.clone());
        let answer = tokio::time::timeout(Duration::from_secs(2), client.status(StatusRequest::default())).await;
        Ok(answer.context("skepd says nothing")??.into_inner())
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("end of the log of {}:\n{}", self.ip, lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(child) = &self.child else { return Ok(()) };
        Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }

    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Managers {
    /// Starts `count` of them; the first founds the cluster, the others join.
    ///
    /// # Errors
    /// If one does not come up, with the end of its log.
    pub async fn start(count: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("skm{}-", std::process::id())).tempdir_in("/var/tmp")?;
        let mut this =
            Self { daemons: Vec::new(), worker_token: String::new(), manager_token: String::new(), names: AtomicU64::new(0), dir };
        for number in 0..count {
            let mut daemon = Daemon::new(this.dir.path().join(format!("m{number}")), number)?;
            daemon.spawn()?;
            this.daemons.push(daemon);
            this.answers(number).await?;
            let entered = if number == 0 { this.found().await } else { this.join(number).await };
            entered.map_err(|error| error.context(this.daemons[number].log_tail()))?;
        }
        this.leader().await?;
        Ok(this)
    }

    async fn answers(&self, number: usize) -> Result<()> {
        let daemon = &self.daemons[number];
        let outcome = until("skepd answers", LIMIT, STEP, || async { Ok(daemon.status().await.is_ok()) }).await;
        outcome.map_err(|error| error.context(daemon.log_tail()))
    }

    async fn found(&mut self) -> Result<()> {
        let daemon = &self.daemons[0];
        let request = InitRequest { advertise_addr: daemon.ip.clone(), availability: Availability::Drain as i32, ..InitRequest::default() };
        let answer = LocalNodeClient::new(daemon.channel.clone()).init(request).await?.into_inner();
        (self.worker_token, self.manager_token) = (answer.worker_token, answer.manager_token);
        Ok(())
    }

    async fn join(&self, number: usize) -> Result<()> {
        let daemon = &self.daemons[number];
        let request = JoinRequest {
            token: self.manager_token.clone(),
            remote_addrs: vec![self.address(0)],
            advertise_addr: daemon.ip.clone(),
            availability: Availability::Drain as i32,
            ..JoinRequest::default()
        };
        LocalNodeClient::new(daemon.channel.clone()).join(request).await?;
        Ok(())
    }

    /// `host:port`, for agents.
    #[must_use]
    pub fn address(&self, number: usize) -> String {
        format!("{}:{PORT}", self.daemons[number].ip)
    }

    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        (0..self.daemons.len()).map(|number| self.address(number)).collect()
    }

    /// Those that run.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.daemons.iter().filter_map(|daemon| daemon.child.as_ref().map(Child::id)).collect()
    }

    /// Those that run, without one.
    #[must_use]
    pub fn pids_but(&self, number: usize) -> Vec<u32> {
        let others = self.daemons.iter().enumerate().filter(|(other, _)| *other != number);
        others.filter_map(|(_, daemon)| daemon.child.as_ref().map(Child::id)).collect()
    }

    #[must_use]
    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.daemons[number].dir.join("data")
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The one that leads, of those that run; waits for an election.
    ///
    /// # Errors
    /// If none leads for long.
    pub async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + LIMIT;
        loop {
            for (number, daemon) in self.daemons.iter().enumerate().filter(|(_, daemon)| daemon.child.is_some()) {
                if daemon.status().await.is_ok_and(|status| status.leader) {
                    return Ok(number);
                }
            }
            if Instant::now() > deadline {
                let logs: Vec<String> = self.daemons.iter().map(Daemon::log_tail).collect();
                bail!("no manager leads\n{}", logs.join("\n"));
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// The API of one of them, on its local socket.
    #[must_use]
    pub fn control(&self, number: usize) -> ControlClient<Channel> {
        ControlClient::new(self.daemons[number].channel.clone()).max_decoding_message_size(MESSAGE)
    }

    /// Sends a signal, and does not wait.
    ///
    /// # Errors
    /// If it is not there.
    pub fn signal(&mut self, number: usize, signal: Signal) -> Result<()> {
        self.daemons[number].end(signal)
    }

    /// Waits until one that was told to end has ended, or ends it after a while.
    pub async fn ended(&mut self, number: usize) {
        let daemon = &mut self.daemons[number];
        let deadline = Instant::now() + LIMIT;
        while let Some(child) = &mut daemon.child
            && Instant::now() < deadline
            && matches!(child.try_wait(), Ok(None))
        {
            tokio::time::sleep(STEP).await;
        }
        daemon.reap();
    }

    /// Starts one again that ended, and waits until it answers and all managers are reachable.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart(&mut self, number: usize) -> Result<()> {
        self.daemons[number].spawn()?;
        self.answers(number).await?;
        let leader = self.leader().await?;
        until("all managers are reachable", LIMIT, STEP, || async {
            let request = v1::ListNodesRequest { filters: Some(v1::list_nodes_request::Filters { roles: vec![1], ..Default::default() }) };
            let Ok(answer) = self.control(leader).list_nodes(request).await else { return Ok(false) };
            let reachable = v1::raft_member_status::Reachability::Reachable as i32;
            let nodes = answer.into_inner().nodes;
            let there = |node: &v1::Node| node.manager_status.as_ref().is_some_and(|status| status.reachability == reachable);
            Ok(nodes.iter().filter(|node| there(node)).count() == self.daemons.len())
        })
        .await
    }

    /// A config of 256 bytes under a new name.
    #[must_use]
    pub fn new_config(&self) -> v1::CreateConfigRequest {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        config(&format!("bench-{number}"))
    }

    /// Writes one object; its version counts all commits before it.
    ///
    /// # Errors
    /// The API's refusal.
    pub async fn revision(&self) -> Result<u64> {
        let leader = self.leader().await?;
        let answer = self.control(leader).create_config(self.new_config()).await?.into_inner();
        let version = answer.config.and_then(|config| config.meta).and_then(|meta| meta.version);
        Ok(version.context("a new object without a version")?.index)
    }

    /// The ends of all logs, for messages.
    #[must_use]
    pub fn log_tails(&self) -> String {
        self.daemons.iter().map(Daemon::log_tail).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Managers {
    fn drop(&mut self) {
        self.daemons.iter_mut().for_each(Daemon::reap);
        if std::env::var_os("SKEP_BENCH_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept: {}", self.dir.path().display());
        }
    }
}

/// What is written where something has to be: 256 bytes of data.
#[must_use]
pub fn config(name: &str) -> v1::CreateConfigRequest {
    let annotations = v1::Annotations { name: name.to_owned(), ..v1::Annotations::default() };
    v1::CreateConfigRequest { spec: Some(v1::ConfigSpec { annotations: Some(annotations), data: vec![b'x'; 256], ..Default::default() }) }
}
