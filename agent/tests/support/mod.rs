//! A private containerd with one small image, removed again also on failure.
#![allow(dead_code, reason = "not every test uses every part")]

use async_trait::async_trait;
use skep_agent::{
    Assign, Board, ContainerdConfig, ContainerdExecutor, Engine, Executor, ImageConfig, ImageError, ImageReady, Images, LogWriter,
    LogWriterCommand, Network, NetworkError, NodeFacts, Sandbox,
};
use skep_types::{
    Annotations, ContainerSpec, Meta, PortConfig, ResourceRequirements, Runtime, Task, TaskId, TaskSpec, TaskState, TaskStatus,
};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub const NAMESPACE: &str = "skep";
const APPLETS: &[&str] = &[
    "sh", "sleep", "echo", "cat", "true", "false", "id", "env", "ls", "head", "dd", "kill", "printf", "seq", "wc", "mount", "touch", "stat",
];

fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Why real tests cannot run here; they then fail if `SKEP_REQUIRE_REAL=1`.
pub fn skip() -> Option<String> {
    let missing = ["containerd", "runc", "ctr", "busybox", "tar", "sha256sum"]
        .into_iter()
        .find(|program| !Command::new("which").arg(program).output().is_ok_and(|output| output.status.success()));
    let why = match missing {
        _ if !nix::unistd::geteuid().is_root() => "not root".to_owned(),
        Some(program) => format!("{program} is not installed"),
        None => return None,
    };
    assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "real tests are required: {why}");
    eprintln!("SKIPPED: {why}");
    Some(why)
}

/// One containerd with directories of its own.
pub struct Containerd {
    pub dir: tempfile::TempDir,
    process: Option<Child>,
    pub chain_id: String,
}

impl Containerd {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("skep-agent-").tempdir().unwrap();
        let mut this = Self { dir, process: None, chain_id: String::new() };
        std::fs::write(this.path("config.toml"), "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n").unwrap();
        this.start();
        this.import();
        this
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("c.sock")
    }

    pub fn start(&mut self) {
        let log = std::fs::File::create(self.path("containerd.log")).unwrap();
        let child = Command::new("containerd")
            .args(["--config", self.path("config.toml").to_str().unwrap()])
            .args(["--root", self.path("root").to_str().unwrap(), "--state", self.path("state").to_str().unwrap()])
            .args(["--address", self.socket().to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "containerd does not start: {}",
                std::fs::read_to_string(self.path("containerd.log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn ctr(&self, args: &[&str]) -> String {
        let socket = self.socket();
        run("ctr", &[&["--address", socket.to_str().unwrap(), "--namespace", NAMESPACE], args].concat(), self.dir.path())
    }

    /// An image of busybox alone, as `docker save` writes it.
    fn import(&mut self) {
        let image = self.path("image");
        let root = image.join("rootfs");
        for dir in ["bin", "etc", "tmp", "data/sub", "proc", "dev", "sys"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n").unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nextra:x:44:app\n").unwrap();
        std::fs::write(root.join("data/sub/file"), "from the image").unwrap();
        run("tar", &["--sort=name", "--mtime=@0", "-C", "rootfs", "-cf", "layer.tar", "."], &image);
        let digest = run("sha256sum", &["layer.tar"], &image);
        self.chain_id = format!("sha256:{}", digest.split_whitespace().next().unwrap());
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            self.chain_id
        );
        std::fs::write(image.join("config.json"), config).unwrap();
        let manifest = r#"[{"Config":"config.json","RepoTags":["docker.io/library/box:1"],"Layers":["layer.tar"]}]"#;
        std::fs::write(image.join("manifest.json"), manifest).unwrap();
        run("tar", &["-cf", "../image.tar", "manifest.json", "config.json", "layer.tar"], &image);
        self.ctr(&["image", "import", "image.tar"]);
    }

    /// Everything that is left; empty when all was cleaned up.
    pub fn audit(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (what, args) in [("container", vec!["container", "ls", "-q"]), ("task", vec!["task", "ls", "-q"])] {
            left.extend(self.ctr(&args).lines().map(|line| format!("{what} {line}")));
        }
        let snapshots = self.ctr(&["snapshot", "ls"]);
        left.extend(snapshots.lines().skip(1).filter(|line| !line.contains("Committed")).map(|line| format!("snapshot {line}")));
        let here = self.dir.path().to_str().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(here)).map(|line| format!("mount {line}")));
        for dir in ["run/tasks", "run/volumes", "data/agent/tasks", "data/agent/etc", "data/agent/logs"] {
            if let Ok(entries) = std::fs::read_dir(self.path(dir)) {
                left.extend(entries.map(|entry| format!("file {}", entry.unwrap().path().display())));
            }
        }
        for cgroups in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
            if let Ok(entries) = std::fs::read_dir(format!("{cgroups}{}", self.cgroup_parent())) {
                left.extend(
                    entries.flatten().filter(|entry| entry.path().is_dir()).map(|entry| format!("cgroup {}", entry.path().display())),
                );
            }
        }
        left
    }

    /// Unique per test, so that tests do not see each other.
    pub fn cgroup_parent(&self) -> String {
        format!("/{}", self.dir.path().file_name().unwrap().to_str().unwrap())
    }

    pub fn config(&self) -> ContainerdConfig {
        let node = NodeFacts { id: "node1".into(), hostname: "alpha".into(), os: "linux".into(), architecture: "x86_64".into() };
        let mut config = ContainerdConfig::new(self.socket(), self.path("data"), self.path("run"), node);
        config.init = vec![init_program()];
        config.cgroup_parent = self.cgroup_parent();
        config
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Shims outlive containerd: by their socket argument they are ours and nobody else's.
        if self.process.is_none() {
            self.start();
        }
        let socket = self.socket();
        let ctr = |args: &[&str]| {
            let output = Command::new("ctr").args(["--address", socket.to_str().unwrap(), "--namespace", NAMESPACE]).args(args).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        for task in ctr(&["task", "ls", "-q"]).lines() {
            ctr(&["task", "kill", "-s", "KILL", task]);
            ctr(&["task", "rm", "-f", task]);
        }
        for container in ctr(&["container", "ls", "-q"]).lines() {
            ctr(&["container", "rm", container]);
        }
        self.kill();
        let here = self.dir.path().to_str().unwrap().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| path.starts_with(&here)) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
        for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(controller.path().join(&self.cgroup_parent()[1..]));
        }
        let _ = std::fs::remove_dir(format!("/sys/fs/cgroup{}", self.cgroup_parent()));
    }
}

/// Knows one image.
pub struct OneImage {
    pub chain_id: String,
    pub config: ImageConfig,
}

#[async_trait]
impl Images for OneImage {
    async fn ensure(&self, reference: &str, _: &str) -> Result<ImageReady, ImageError> {
        if reference != "box:1" {
            return Err(ImageError::NotFound { reference: reference.to_owned(), reason: "this test has box:1 only".into() });
        }
        Ok(ImageReady {
            digest: "sha256:0".into(),
            id: "sha256:1".into(),
            chain_id: self.chain_id.clone(),
            snapshotter: "overlayfs".into(),
            config: Arc::new(self.config.clone()),
        })
    }
}

/// Everyone on the host's network.
pub struct HostNetwork;

#[async_trait]
impl Network for HostNetwork {
    async fn attach(&self, _: &Task) -> Result<Sandbox, NetworkError> {
        Ok(Sandbox::default())
    }
    async fn serve(&self, _: &Task) -> Result<Vec<PortConfig>, NetworkError> {
        Ok(Vec::new())
    }
    async fn withdraw(&self, _: &TaskId) {}
    async fn detach(&self, _: &TaskId) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn recover(&self, _: &[(Task, bool)]) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// A running engine over a private containerd.
pub struct Node {
    pub engine: Engine,
    pub executor: ContainerdExecutor,
    stop: CancellationToken,
    work: tokio::task::JoinSet<()>,
}

/// This test program as a log writer: see `log_writer_process`.
pub fn log_writer(run_dir: &Path) -> LogWriterCommand {
    LogWriterCommand {
        program: std::env::current_exe().unwrap(),
        args: ["log_writer_process", "--exact", "--nocapture", "--ignored"].map(Into::into).to_vec(),
        envs: vec![("SKEP_TEST_LOG_WRITER".into(), run_dir.into())],
    }
}

impl Node {
    pub async fn start(containerd: &Containerd) -> Self {
        Self::start_with(containerd, |_| {}).await
    }

    pub async fn start_with(containerd: &Containerd, change: impl FnOnce(&mut ImageConfig)) -> Self {
        Self::start_at(containerd.config(), containerd.chain_id.clone(), change).await
    }

    pub async fn start_at(config: ContainerdConfig, chain_id: String, change: impl FnOnce(&mut ImageConfig)) -> Self {
        let stop = CancellationToken::new();
        let logs = LogWriter::new(config.run_dir.join("logs.sock"), log_writer(&config.run_dir));
        let mut image = ImageConfig { command: vec!["sh".into()], env: vec!["FROM=image".into()], ..ImageConfig::default() };
        change(&mut image);
        let images = Arc::new(OneImage { chain_id, config: image });
        let network = Arc::new(HostNetwork);
        let data_dir = config.data_dir.clone();
        let executor = ContainerdExecutor::new(config, images, network.clone(), logs.clone(), Board::default()).unwrap();
        let mut work = tokio::task::JoinSet::new();
        let (listener, token) = (executor.clone(), stop.clone());
        work.spawn(async move { listener.listen(token).await });
        let token = stop.clone();
        work.spawn(async move { logs.keep(token).await });
        let erased: Arc<dyn Executor> = Arc::new(executor.clone());
        let (engine, run) = Engine::start(&data_dir, "node1", erased, network, stop.clone()).await.unwrap();
        work.spawn(run);
        Self { engine, executor, stop, work }
    }

    /// As a clean end of skepd: tasks go on.
    pub async fn end(mut self) {
        self.stop.cancel();
        while self.work.join_next().await.is_some() {}
    }

    pub async fn assign(&self, task: &Task) {
        self.engine.assign.send(Assign::Update(Box::new(task.clone()))).await.unwrap();
    }

    pub async fn desire(&self, task: &mut Task, state: TaskState) {
        task.desired_state = state;
        self.assign(task).await;
    }

    pub async fn leave(&self) {
        let (done, waiter) = tokio::sync::oneshot::channel();
        self.engine.assign.send(Assign::Leave(done)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), waiter).await.expect("leaving takes too long").unwrap();
    }

    /// Waits until the task is in this state or one that excludes it.
    pub async fn wait(&self, task: &Task, state: TaskState) -> TaskStatus {
        let begin = Instant::now();
        loop {
            let status = self.engine.reports.newest(&task.id);
            match status {
                Some(status) if status.state >= state => {
                    assert_eq!(status.state, state, "{status:?}");
                    return status;
                }
                status => assert!(begin.elapsed() < Duration::from_secs(60), "{status:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The static `skep-init` beside the tests' directory; `scripts/static debug` makes it.
pub fn init_program() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("skep-init")
}

/// `sh -c script`.
pub fn shell(number: u64, script: &str) -> Task {
    task(number, ContainerSpec { command: vec!["sh".into(), "-c".into(), script.into()], ..ContainerSpec::default() })
}

pub fn task(number: u64, mut container: ContainerSpec) -> Task {
    if container.image.is_empty() {
        container.image = "box:1".into();
    }
    Task {
        id: unique(number),
        meta: Meta::default(),
        spec: Arc::new(TaskSpec::new(container)),
        spec_version: None,
        service_id: Some("service1".parse().unwrap()),
        slot: 1,
        node_id: Some("node1".parse().unwrap()),
        annotations: Annotations::default(),
        service_annotations: Annotations { name: "web".into(), ..Annotations::default() },
        status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
        desired_state: TaskState::Running,
        networks: Vec::new(),
        endpoint: None,
        log_driver: None,
        assigned_generic_resources: Vec::new(),
        job_iteration: None,
    }
}

/// runc's state directory is shared by all containerds of a machine: ids must differ between tests and runs.
fn unique(number: u64) -> TaskId {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    TaskId::for_test(u64::from(std::process::id()) * 1_000_000 + next * 1000 + number)
}

pub fn container(task: &mut Task, change: impl FnOnce(&mut ContainerSpec)) {
    let spec = Arc::make_mut(&mut task.spec);
    if let Runtime::Container(container) = &mut spec.runtime {
        change(container);
    }
}

pub fn memory_limit(task: &mut Task, bytes: i64) {
    let mut resources = ResourceRequirements::default();
    resources.limits.memory_bytes = bytes;
    Arc::make_mut(&mut task.spec).resources = Some(resources);
}

/// What a task wrote, all lines as one text.
pub async fn output(containerd: &Containerd, task: &Task) -> String {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1000);
    let query = skep_agent::LogQuery { stdout: true, stderr: true, since: None, tail: skep_agent::Tail::All, follow: false };
    let dir = containerd.config().logs_dir().join(task.id.as_str());
    skep_agent::read_logs(dir, query, sender, CancellationToken::new()).await.unwrap();
    let mut text = String::new();
    while let Some(lines) = receiver.recv().await {
        text.extend(lines.iter().map(|line| String::from_utf8(line.data.to_vec()).unwrap()));
    }
    text
}

/// What a task wrote, as soon as this is in it: on a starved machine the log may be later than the end ([`skep_agent`] waits for it
/// only so long).
pub async fn output_with(containerd: &Containerd, task: &Task, wanted: &str) -> String {
    let begin = Instant::now();
    loop {
        let text = output(containerd, task).await;
        if text.contains(wanted) {
            return text;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "no {wanted:?} in {text:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn pid_exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
