use crate::process::{Output, binary, run};
use crate::sweep::Debris;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Debian's libfaketime, which moves the clock of one process.
const LIBFAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// A daemon that starts or stops takes a second or two; on a starved machine it takes longer.
const STARTED: Duration = Duration::from_secs(60);

/// One machine: a network namespace, directories, a cgroup, and the daemons that run in it.
///
/// Whoever made it lays its cables and takes everything away in the end.
pub struct Host {
    name: String,
    dir: PathBuf,
    namespace: String,
    cgroup: String,
    containerd: Option<Child>,
    skepd: Option<Child>,
    environment: Vec<(String, String)>,
    flags: Vec<String>,
    log_level: &'static str,
    outlives_us: bool,
    /// The machine is called as the host is, to its daemon.
    is_named: bool,
    paused: AtomicBool,
}

impl Host {
    /// Makes the namespace and the directory; there is no cable yet and no daemon.
    ///
    /// # Errors
    /// If the namespace cannot be made.
    pub(crate) fn new(name: &str, dir: PathBuf, namespace: String, cgroup: String) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        run("ip", &["netns", "add", &namespace])?.success()?;
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?.success()?;
        Ok(Self {
            name: name.to_owned(),
            dir,
            namespace,
            cgroup,
            containerd: None,
            skepd: None,
            environment: Vec::new(),
            flags: Vec::new(),
            log_level: "debug",
            outlives_us: false,
            is_named: false,
            paused: AtomicBool::new(false),
        })
    }

    /// Its daemons are not ended with the process that started them.
    pub(crate) fn let_outlive(&mut self) {
        self.outlives_us = true;
        self.is_named = true;
    }

    /// From the next start of skepd on, the machine's name is that of the host; otherwise all hosts have this machine's.
    pub fn give_name(&mut self) {
        self.is_named = true;
    }

    /// What is to be taken away in the end.
    pub(crate) fn debris(&self) -> Debris {
        Debris {
            dir: self.dir.clone(),
            hosts: vec![self.dir.clone()],
            namespaces: vec![self.namespace.clone()],
            cgroups: vec![self.cgroup.clone()],
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The cgroup, in every hierarchy, that holds the cgroups of this host's tasks.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The directory that holds everything of the host.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// skepd's local socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("skep.sock")
    }

    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// The directory that containerd keeps its running state in.
    #[must_use]
    pub fn containerd_state(&self) -> PathBuf {
        self.dir.join("cstate")
    }

    #[must_use]
    pub fn containerd_pid(&self) -> Option<u32> {
        self.containerd.as_ref().map(Child::id)
    }

    #[must_use]
    pub fn skepd_pid(&self) -> Option<u32> {
        self.skepd.as_ref().map(Child::id)
    }

    /// Whether skepd was started and has not ended.
    pub fn runs(&mut self) -> bool {
        self.skepd.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Whether skepd's process is there; what has ended and was not asked for is not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let stat = self.skepd_pid().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        stat.is_some_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    /// Whether skepd was started and is meant to answer: nobody killed, stopped or paused it.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.skepd.is_some() && !self.is_paused()
    }

    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Replaces skepd's extra environment, such as `SKEP_FAILPOINT`, from its next start on.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    /// Replaces skepd's extra flags from its next start on.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// What skepd logs from its next start on; `debug` otherwise.
    pub fn set_log_level(&mut self, level: &'static str) {
        self.log_level = level;
    }

    /// A command inside the host's network namespace, outside every other one, so that /sys stays whole.
    #[must_use]
    pub fn host_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        inside(&self.namespace, program)
    }

    /// Gives the host's cable another address and takes the old ones away; the kernel tells nobody.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_address(&self, address: IpAddr, prefix: u8, gateway: IpAddr) -> Result<()> {
        run("ip", &["-n", &self.namespace, "addr", "flush", "dev", "eth0", "scope", "global"])?.success()?;
        run("ip", &["-n", &self.namespace, "addr", "add", &format!("{address}/{prefix}"), "dev", "eth0"])?.success()?;
        run("ip", &["-n", &self.namespace, "route", "replace", "default", "via", &gateway.to_string()])?.success()?;
        Ok(())
    }

    /// Lets no more than `rate` (as `tc` writes it, such as `1mbit`) out of the host; `None` ends that.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn limit_rate(&self, rate: Option<&str>) -> Result<()> {
        let _ = run("tc", &["-n", &self.namespace, "qdisc", "del", "dev", "eth0", "root"])?;
        if let Some(rate) = rate {
            let shaper = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "200ms"];
            run("tc", &[&["-n", &self.namespace, "qdisc", "add", "dev", "eth0"][..], &shaper].concat())?.success()?;
        }
        Ok(())
    }

    fn spawn(&self, mut command: Command, log: &str) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.dir.join(log))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if self.outlives_us {
            // Else the terminal's interrupt would reach it as well.
            command.process_group(0);
        }
        Ok(command.spawn()?)
    }

    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// If it does not within a minute; its log is in the host's directory.
    pub fn start_containerd(&mut self) -> Result<()> {
        let config = self.dir.join("containerd.toml");
        std::fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[debug]\n  level = \"warn\"\n")?;
        let mut command = self.host_command("containerd");
        command.arg("--config").arg(config).arg("--root").arg(self.dir.join("croot"));
        command.arg("--state").arg(self.containerd_state()).arg("--address").arg(self.containerd_socket());
        self.containerd = Some(self.spawn(command, "containerd.log")?);
        eventually(STARTED, "containerd answers", || self.ctr(&["version"])?.success())?;
        Ok(())
    }

    /// Kills containerd as `kill -9` does.
    pub fn kill_containerd(&mut self) {
        kill(&mut self.containerd);
    }

    /// Starts skepd and waits until its socket answers.
    ///
    /// # Errors
    /// If it ends or does not answer within a minute, with the end of its log.
    pub fn start_skepd(&mut self) -> Result<()> {
        self.spawn_skepd()?;
        ensure!(self.answers_or_dies()?, "skepd ended at its start; {}", self.log_tail());
        Ok(())
    }

    /// Starts skepd anew, to kill itself at this fail-point. Whether it is up; `false` if it has died already.
    ///
    /// # Errors
    /// If it neither answers nor dies.
    pub fn arm(&mut self, failpoint: Option<&str>) -> Result<bool> {
        self.kill_skepd();
        self.set_environment(failpoint.into_iter().map(|point| ("SKEP_FAILPOINT".to_owned(), point.to_owned())).collect());
        self.spawn_skepd()?;
        self.answers_or_dies()
    }

    /// Waits for the answer of a daemon that may die on the way.
    ///
    /// # Errors
    /// If it neither answers nor dies within a minute, with the end of its log.
    pub fn answers_or_dies(&mut self) -> Result<bool> {
        let answered = eventually(STARTED, "skepd answers", || match self.ctl(&["cluster", "status"])?.success() {
            Err(_) if !self.runs() => Ok(false),
            answer => answer.map(|_| true),
        });
        answered.map_err(|error| error.context(self.log_tail()))
    }

    /// Starts skepd without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_skepd(&mut self) -> Result<()> {
        let mut command = if self.is_named {
            // People want names to tell the hosts apart by; the process stays the same one through all of this.
            let mut command = self.host_command("unshare");
            command.args(["--uts", "--", "sh", "-c", "hostname \"$0\" && exec \"$@\"", &self.name]).arg(binary("skepd")?);
            command
        } else {
            self.host_command(binary("skepd")?)
        };
        command.arg("--data-dir").arg(self.data_dir()).arg("--run-dir").arg(self.run_dir());
        command.arg("--containerd").arg(self.containerd_socket()).arg("--cgroup-parent").arg(format!("/{}", self.cgroup));
        command.args(["--log-level", self.log_level]).args(&self.flags).envs(self.environment.iter().cloned());
        self.paused.store(false, Ordering::Relaxed);
        self.skepd = Some(self.spawn(command, "skepd.log")?);
        Ok(())
    }

    /// Kills skepd as `kill -9` does.
    pub fn kill_skepd(&mut self) {
        kill(&mut self.skepd);
    }

    /// Asks skepd to stop (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// If it does not stop within a minute or ends badly.
    pub fn stop_skepd(&mut self) -> Result<()> {
        self.signal_skepd(Signal::SIGTERM)?;
        let Some(mut child) = self.skepd.take() else { return Ok(()) };
        let status = eventually(STARTED, "skepd stops", || child.try_wait()?.context("still there"));
        let status = status.inspect_err(|_| drop(child.kill().and_then(|()| child.wait())))?;
        ensure!(status.success(), "skepd ended with {status}: {}", self.log_tail());
        Ok(())
    }

    /// Stops skepd where it is (SIGSTOP): it answers nothing, and its connections stay open.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn pause_skepd(&self) -> Result<()> {
        self.paused.store(true, Ordering::Relaxed);
        self.signal_skepd(Signal::SIGSTOP)
    }

    /// # Errors
    /// If there is no such process.
    pub fn resume_skepd(&self) -> Result<()> {
        self.paused.store(false, Ordering::Relaxed);
        self.signal_skepd(Signal::SIGCONT)
    }

    fn signal_skepd(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.skepd_pid() else { return Ok(()) };
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), signal)?)
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

    /// Kills skepd and empties its data directory, as if the machine had been set up anew; containers and tasks stay.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn wipe(&mut self) -> Result<()> {
        self.kill_skepd();
        for entry in std::fs::read_dir(self.data_dir())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) }
                .with_context(|| entry.path().display().to_string())?;
        }
        Ok(())
    }

    /// Kills both daemons.
    pub(crate) fn kill_all(&mut self) {
        self.kill_skepd();
        self.kill_containerd();
    }

    /// From its next start on skepd's calendar clock can be moved by [`set_clock`](Self::set_clock); its monotonic one stays.
    /// `false` if libfaketime is not installed.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn fake_clock(&mut self) -> Result<bool> {
        if !Path::new(LIBFAKETIME).exists() {
            return Ok(false);
        }
        self.set_clock(0)?;
        let file = self.dir.join("clock").to_string_lossy().into_owned();
        for (key, value) in [
            ("LD_PRELOAD", LIBFAKETIME),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ] {
            self.environment.push((key.to_owned(), value.to_owned()));
        }
        Ok(true)
    }

    /// Moves the clock that [`fake_clock`](Self::fake_clock) put in place so many seconds from the true one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        let side = self.dir.join(".clock");
        std::fs::write(&side, format!("{seconds:+}\n"))?;
        Ok(std::fs::rename(side, self.dir.join("clock"))?)
    }

    /// `swarmctl` against this host; ended after a minute.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Output> {
        let (program, socket) = (binary("swarmctl")?, self.socket());
        let mut all = vec!["60", program.to_str().context("the path is UTF-8")?, "--socket", socket.to_str().context("the path is UTF-8")?];
        all.extend(arguments);
        run("timeout", &all)
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

    /// The first processes of the containers that run on this host, by containerd's word.
    ///
    /// # Errors
    /// If containerd does not answer.
    pub fn running_pids(&self) -> Result<BTreeSet<i32>> {
        let text = self.ctr(&["tasks", "ls"])?.success()?;
        let words = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        Ok(words.filter(|words| words.get(2) == Some(&"RUNNING")).filter_map(|words| words.get(1)?.parse().ok()).collect())
    }

    /// What the host itself gets from a URL.
    ///
    /// # Errors
    /// If nothing answers within 10 s or the answer is not a success.
    pub fn curl_on_host(&self, url: &str) -> Result<String> {
        curl_from(&self.namespace, url)
    }

    /// The end of skepd's log, for messages of failed tests.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(self.dir.join("skepd.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        format!("end of the log of skepd on {}:\n{}", self.name, lines[lines.len().saturating_sub(60)..].join("\n"))
    }

    /// Everything skepd logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.join("skepd.log")).unwrap_or_default()).into_owned()
    }
}

pub(crate) fn curl_from(namespace: &str, url: &str) -> Result<String> {
    let net = format!("--net=/run/netns/{namespace}");
    run("nsenter", &[&net, "curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "10", url])?.success()
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
