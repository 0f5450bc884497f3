use crate::process::{Output, binary, run};
use crate::sweep;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How a lab differs from the usual.
#[derive(Debug, Clone, Default)]
pub struct LabOptions {
    /// Added to skepd's environment, such as `SKEP_FAILPOINT`.
    pub environment: Vec<(String, String)>,
}

/// A host with its own network namespace, containerd and skepd, and a client namespace joined to it by a cable.
///
/// The host is 198.18.0.1 and fd18::1, the client 198.18.0.2 and fd18::2; both only exist inside the two namespaces.
pub struct Lab {
    dir: tempfile::TempDir,
    tag: String,
    containerd: Option<Child>,
    skepd: Option<Child>,
    options: LabOptions,
    log_level: &'static str,
}

/// The address of the host, as the client sees it.
pub const HOST: &str = "198.18.0.1";
/// The client's own address.
pub const CLIENT: &str = "198.18.0.2";

impl Lab {
    pub const HOST: &'static str = HOST;
    pub const CLIENT: &'static str = CLIENT;

    /// Namespaces, cable and containerd; skepd is not started yet.
    ///
    /// # Errors
    /// If anything cannot be made; what was made is removed.
    pub fn new(options: LabOptions) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("skl{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Short, because unix socket paths end at 107 bytes.
        let dir = tempfile::Builder::new().prefix("skl").tempdir_in("/tmp")?;
        let mut lab = Self { dir, tag, containerd: None, skepd: None, options, log_level: "debug" };
        lab.lay_cable()?;
        lab.start_containerd()?;
        Ok(lab)
    }

    /// A lab whose host is a swarm of its own and has the demonstration image `whoami:latest`.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn swarm(options: LabOptions) -> Result<Self> {
        let mut lab = Self::new(options)?;
        lab.start_skepd()?;
        lab.ctl(&["cluster", "init", "--advertise-addr", HOST])?.success().context("cluster init")?;
        let image = crate::process::whoami_image()?;
        lab.ctl(&["image", "load", "-q", "-i", &image.to_string_lossy()])?.success().context("image load")?;
        Ok(lab)
    }

    fn lay_cable(&self) -> Result<()> {
        let (host, client) = (self.host_namespace(), self.client_namespace());
        for namespace in [&host, &client] {
            run("ip", &["netns", "add", namespace])?.success()?;
            run("ip", &["-n", namespace, "link", "set", "lo", "up"])?.success()?;
        }
        run("ip", &["link", "add", "eth0", "netns", &host, "type", "veth", "peer", "name", "eth0", "netns", &client])?.success()?;
        for (namespace, v4, v6) in [(&host, "198.18.0.1/24", "fd18::1/64"), (&client, "198.18.0.2/24", "fd18::2/64")] {
            run("ip", &["-n", namespace, "addr", "add", v4, "dev", "eth0"])?.success()?;
            run("ip", &["-n", namespace, "addr", "add", v6, "dev", "eth0", "nodad"])?.success()?;
            run("ip", &["-n", namespace, "link", "set", "eth0", "up"])?.success()?;
        }
        run("ip", &["-n", &host, "route", "add", "default", "via", CLIENT])?.success()?;
        Ok(())
    }

    #[must_use]
    pub fn host_namespace(&self) -> String {
        format!("{}h", self.tag)
    }

    #[must_use]
    pub fn client_namespace(&self) -> String {
        format!("{}c", self.tag)
    }

    /// The cgroup, in every hierarchy, that holds the cgroups of this lab's tasks.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.tag
    }

    /// The directory that holds everything of the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.dir().join("c.sock")
    }

    /// A command inside the host's network namespace, outside every other one, so that /sys stays whole.
    #[must_use]
    pub fn host_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        inside(&self.host_namespace(), program)
    }

    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// If it does not within 20 s; its log is in the lab's directory.
    pub fn start_containerd(&mut self) -> Result<()> {
        let config = self.dir().join("containerd.toml");
        std::fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[debug]\n  level = \"warn\"\n")?;
        let log = File::options().create(true).append(true).open(self.dir().join("containerd.log"))?;
        let child = self
            .host_command("containerd")
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(self.dir().join("croot"))
            .arg("--state")
            .arg(self.dir().join("cstate"))
            .arg("--address")
            .arg(self.containerd_socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.containerd = Some(child);
        eventually(Duration::from_secs(20), "containerd answers", || self.ctr(&["version"])?.success())?;
        Ok(())
    }

    /// Kills containerd as `kill -9` does.
    pub fn kill_containerd(&mut self) {
        kill(&mut self.containerd);
    }

    /// Starts skepd and waits until its socket answers.
    ///
    /// # Errors
    /// If it ends or does not answer within 20 s, with the end of its log.
    pub fn start_skepd(&mut self) -> Result<()> {
        self.spawn_skepd()?;
        let status = eventually(Duration::from_secs(20), "skepd answers", || self.ctl(&["cluster", "status"])?.success());
        status.map(drop).map_err(|error| error.context(self.log_tail()))
    }

    /// Starts skepd without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_skepd(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir().join("skepd.log"))?;
        let child = self
            .host_command(binary("skepd")?)
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--containerd")
            .arg(self.containerd_socket())
            .arg("--cgroup-parent")
            .arg(format!("/{}", self.tag))
            .args(["--log-level", self.log_level])
            .envs(self.options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.skepd = Some(child);
        Ok(())
    }

    /// Replaces skepd's extra environment from its next start on.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.options.environment = environment;
    }

    /// What skepd logs from its next start on; `debug` otherwise.
    pub fn set_log_level(&mut self, level: &'static str) {
        self.log_level = level;
    }

    /// The directory that containerd keeps its running state in.
    #[must_use]
    pub fn containerd_state(&self) -> PathBuf {
        self.dir().join("cstate")
    }

    #[must_use]
    pub fn containerd_pid(&self) -> Option<u32> {
        self.containerd.as_ref().map(Child::id)
    }

    #[must_use]
    pub fn skepd_pid(&self) -> Option<u32> {
        self.skepd.as_ref().map(Child::id)
    }

    /// Kills skepd as `kill -9` does.
    pub fn kill_skepd(&mut self) {
        kill(&mut self.skepd);
    }

    /// Asks skepd to stop (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// If it does not stop within 15 s or ends badly.
    pub fn stop_skepd(&mut self) -> Result<()> {
        let Some(mut child) = self.skepd.take() else { return Ok(()) };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = eventually(Duration::from_secs(15), "skepd stops", || child.try_wait()?.context("still there"))?;
        ensure!(status.success(), "skepd ended with {status}: {}", self.log_tail());
        Ok(())
    }

    /// Waits until skepd ended by itself, as it does at an armed fail-point; `false` if it goes on.
    pub fn skepd_died(&mut self, limit: Duration) -> bool {
        let Some(child) = self.skepd.as_mut() else { return true };
        let died = eventually(limit, "skepd dies", || child.try_wait()?.context("still there")).is_ok();
        if died {
            self.skepd = None;
        }
        died
    }

    /// `swarmctl` against this host.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Output> {
        let socket = self.run_dir().join("skep.sock");
        let mut all = vec!["--socket", socket.to_str().context("the path is UTF-8")?];
        all.extend(arguments);
        run(&binary("swarmctl")?.to_string_lossy(), &all)
    }

    /// `ctr` against this host's containerd, in skepd's namespace.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn ctr(&self, arguments: &[&str]) -> Result<Output> {
        let socket = self.containerd_socket();
        let mut all = vec!["--connect-timeout", "2s", "-n", "skep", "-a", socket.to_str().context("the path is UTF-8")?];
        all.extend(arguments);
        run("ctr", &all)
    }

    /// What the client gets from a URL.
    ///
    /// # Errors
    /// If nothing answers within 3 s or the answer is not a success.
    pub fn curl(&self, url: &str) -> Result<String> {
        self.curl_from(&self.client_namespace(), url)
    }

    /// What the host itself gets from a URL.
    ///
    /// # Errors
    /// See [`curl`](Self::curl).
    pub fn curl_on_host(&self, url: &str) -> Result<String> {
        self.curl_from(&self.host_namespace(), url)
    }

    fn curl_from(&self, namespace: &str, url: &str) -> Result<String> {
        let net = format!("--net=/run/netns/{namespace}");
        run("nsenter", &[&net, "curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "3", url])?.success()
    }

    /// The end of skepd's log, for messages of failed tests.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.dir().join("skepd.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("end of skepd's log:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        self.kill_skepd();
        self.kill_containerd();
        for problem in sweep::sweep(self.dir(), &[self.host_namespace(), self.client_namespace()], &self.tag) {
            eprintln!("clean-up: {problem}");
        }
    }
}

fn inside(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}
