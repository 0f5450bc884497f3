//! One daemon with directories and a port of its own.

use hyper_util::rt::TokioIo;
use skep_ca::Connector;
use skep_proto::skep::local_node_client::LocalNodeClient;
use skep_proto::skep::{StatusRequest, StatusResponse};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// For anything to come true.
const LIMIT: Duration = Duration::from_secs(60);

/// The daemon looks at the network of this machine, which only root may.
pub fn is_possible() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "these tests need root");
        println!("SKIPPED: these tests need root");
    }
    root
}

pub struct Node {
    name: String,
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Node {
    pub fn new(name: &str) -> Self {
        skep_ca::install_crypto_provider();
        let port = free_port();
        // Short: socket paths have 108 bytes.
        let dir = tempfile::Builder::new().prefix("skepd-").tempdir_in("/tmp").unwrap();
        Self { name: name.into(), dir, port, child: None }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let log = std::fs::File::options().create(true).append(true).open(path("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_skepd"))
            .args(["--listen-addr", &self.address(), "--log-level", "debug", "--cgroup-parent", "/skepd-test"])
            .arg("--data-dir")
            .arg(path("data"))
            .arg("--run-dir")
            .arg(path("run"))
            .arg("--containerd")
            .arg(path("no-containerd.sock"))
            .env("SKEPD_CONFIG", write_empty(path("skepd.toml")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.wait("to answer", |_| true).await;
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As systemd would.
    pub async fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let begin = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < LIMIT, "{} does not stop", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn connect(&self) -> Result<LocalNodeClient<Channel>, String> {
        let socket = self.dir.path().join("run/skep.sock");
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                let stream = UnixStream::connect(&socket).await?;
                let local = Connector::local().map_err(std::io::Error::other)?;
                let (stream, _) = local.connect(stream).await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let channel = Endpoint::from_static("http://skepd").connect_with_connector(connector).await;
        channel.map(LocalNodeClient::new).map_err(|error| format!("{error:?}"))
    }

    pub async fn client(&self) -> LocalNodeClient<Channel> {
        self.connect().await.unwrap()
    }

    pub async fn status(&self) -> StatusResponse {
        self.client().await.status(StatusRequest::default()).await.unwrap().into_inner()
    }

    pub async fn wait(&self, what: &str, is_so: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
        let begin = Instant::now();
        loop {
            let seen = match self.connect().await {
                Ok(mut client) => match client.status(StatusRequest::default()).await {
                    Ok(status) if is_so(status.get_ref()) => return status.into_inner(),
                    other => format!("{other:?}"),
                },
                Err(error) => error,
            };
            if begin.elapsed() > LIMIT {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(40).collect();
                panic!("{}: waited for {what}; last seen: {seen}\n{}", self.name, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A port that nobody listens on. It is none of those that the kernel gives to whoever connects somewhere (from 32768 on): one of them may
/// be taken again before the daemon listens, and while it is restarted.
fn free_port() -> u16 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    (0..10_000)
        .map(|_| {
            let number = std::process::id() * 64 + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            20000 + u16::try_from(number % 5_000).expect("below 5,000")
        })
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a port is free")
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The machine's own configuration must not be read.
fn write_empty(path: PathBuf) -> PathBuf {
    std::fs::write(&path, "").unwrap();
    path
}
