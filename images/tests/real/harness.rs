//! Daemons and other real things that a test needs, removed when dropped.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep_images::{ImageBuilder, ImageConfig, ImageStore, LayerFile, Mount, Reference};
use tempfile::TempDir;

pub const NAMESPACE: &str = "skep-test";

/// Whether the real things are here; says loudly when not, and fails if they had to be.
pub fn ready() -> bool {
    let missing: Vec<_> =
        ["containerd", "ctr", "docker-registry", "skopeo", "mount"].into_iter().filter(|program| !on_path(program)).collect();
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let why = match (is_root, missing.is_empty()) {
        (true, true) => {
            let _ = rustls::crypto::ring::default_provider().install_default();
            return true;
        }
        (false, _) => "not root".to_owned(),
        (_, false) => format!("not installed: {}", missing.join(", ")),
    };
    assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "cannot run: {why}");
    eprintln!("SKIPPED: {why}");
    false
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|folder| folder.join(program).exists())
}

/// Runs a command and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().expect(program);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A containerd with its own root, state and socket.
pub struct Containerd {
    folder: TempDir,
    child: Child,
    tmpfs: bool,
}

impl Containerd {
    pub fn start() -> Self {
        Self::start_in(TempDir::with_prefix("skep-images-").unwrap(), false)
    }

    /// On a disk of `megabytes`.
    pub fn start_on_small_disk(megabytes: u32) -> Self {
        let folder = TempDir::with_prefix("skep-images-").unwrap();
        let target = folder.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "skep-test", target]);
        Self::start_in(folder, true)
    }

    fn start_in(folder: TempDir, tmpfs: bool) -> Self {
        let path = folder.path();
        let plugin = |name: &str| format!("\"io.containerd.{name}\"");
        let unneeded = ["grpc.v1.cri", "snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper", "snapshotter.v1.aufs"];
        let disabled = unneeded.map(plugin).join(", ");
        std::fs::write(path.join("config.toml"), format!("version = 2\ndisabled_plugins = [{disabled}]\n")).unwrap();
        let child = Self::spawn(path);
        let containerd = Self { folder, child, tmpfs };
        containerd.wait();
        containerd
    }

    fn spawn(path: &Path) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(path.join("log")).unwrap();
        Command::new("containerd")
            .args(["--log-level", "warn"])
            .arg("--config")
            .arg(path.join("config.toml"))
            .arg("--root")
            .arg(path.join("root"))
            .arg("--state")
            .arg(path.join("state"))
            .arg("--address")
            .arg(path.join("sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn wait(&self) {
        // Registered plugins come before the socket, so a connection means ready.
        eventually("containerd answers", || UnixStream::connect(self.socket()).is_ok());
    }

    /// As a power cut for the daemon.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.child = Self::spawn(self.folder.path());
        self.wait();
    }

    /// Where containerd has the files of its snapshots, one directory each, named by number.
    pub fn snapshot_directories(&self) -> PathBuf {
        self.folder.path().join("root/io.containerd.snapshotter.v1.overlayfs/snapshots")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    pub fn store(&self) -> ImageStore {
        self.store_in(NAMESPACE)
    }

    pub fn store_in(&self, namespace: &str) -> ImageStore {
        ImageStore::connect(self.socket(), namespace).unwrap()
    }

    pub fn ctr(&self, arguments: &[&str]) -> String {
        let socket = self.socket();
        let mut all = vec!["--address", socket.to_str().unwrap(), "--namespace", NAMESPACE];
        all.extend(arguments);
        run("ctr", &all)
    }

    /// Runs the garbage collector to its end: that is what deleting a lease synchronously does.
    pub fn collect_garbage(&self) {
        self.ctr(&["leases", "create", "--id", "gc-trigger"]);
        self.ctr(&["leases", "delete", "--sync", "gc-trigger"]);
    }

    /// What is left: leases, blobs, unfinished blobs, snapshots. All empty after a clean removal.
    pub fn remains(&self) -> [String; 4] {
        [
            self.ctr(&["leases", "ls", "-q"]),
            self.ctr(&["content", "ls", "-q"]),
            self.ctr(&["content", "active"]).lines().skip(1).collect(),
            self.ctr(&["snapshots", "ls"]).lines().skip(1).collect(),
        ]
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            tail.iter().rev().for_each(|line| eprintln!("containerd: {line}"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.tmpfs {
            let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
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
            25000 + u16::try_from(number % 5_000).expect("below 5,000")
        })
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a port is free")
}

/// Debian's docker-registry on loopback, serving a directory.
pub struct Registry {
    folder: TempDir,
    child: Child,
    pub port: u16,
}

/// User `me`, password `secret`.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

impl Registry {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Asks for user `me` and password `secret`.
    pub fn start_locked() -> Self {
        Self::start_with("auth:\n  htpasswd:\n    realm: test\n    path: FOLDER/htpasswd\n")
    }

    fn start_with(more: &str) -> Self {
        let folder = TempDir::with_prefix("skep-registry-").unwrap();
        let path = folder.path().to_str().unwrap();
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {path}/data\n\
             http:\n  addr: 127.0.0.1:{port}\n{}",
            more.replace("FOLDER", path)
        );
        std::fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
        std::fs::write(folder.path().join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { folder, child, port };
        eventually("the registry answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        registry
    }

    pub fn reference(&self, rest: &str) -> Reference {
        reference_at(self.port, rest)
    }

    /// Pushes an archive by skopeo.
    pub fn push(&self, archive: &Path, rest: &str, credentials: Option<&str>) {
        let from = format!("oci-archive:{}", archive.display());
        let to = format!("docker://127.0.0.1:{}/{rest}", self.port);
        let mut arguments = vec!["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"];
        if let Some(credentials) = credentials {
            arguments.extend(["--dest-creds", credentials]);
        }
        arguments.extend([from.as_str(), to.as_str()]);
        run("skopeo", &arguments);
    }

    /// The file in which the registry keeps a blob.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.folder.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn reference_at(port: u16, rest: &str) -> Reference {
    format!("127.0.0.1:{port}/{rest}").parse().unwrap()
}

/// A TCP proxy that counts, and cuts connections after so many bytes.
pub struct Proxy {
    pub port: u16,
    pub bytes: Arc<AtomicU64>,
    pub cuts: Arc<AtomicU64>,
}

impl Proxy {
    /// Cuts the first `cuts` connections that carry more than `after` bytes to the client.
    pub fn start(to: u16, cuts: u64, after: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Self { port, bytes: Arc::default(), cuts: Arc::default() };
        let (bytes, made) = (Arc::clone(&proxy.bytes), Arc::clone(&proxy.cuts));
        // The threads end with the test's process; each waits on a socket only.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut up_from, &mut up_to);
                    let _ = up_to.shutdown(Shutdown::Write);
                });
                let (bytes, made) = (Arc::clone(&bytes), Arc::clone(&made));
                std::thread::spawn(move || forward(server, client, cuts, after, &bytes, &made));
            }
        });
        proxy
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, cuts: u64, after: u64, bytes: &AtomicU64, made: &AtomicU64) {
    let mut buffer = [0; 16 * 1024];
    let mut carried = 0;
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        carried += got as u64;
        bytes.fetch_add(got as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..got]).is_err() {
            break;
        }
        let take_one = |made: u64| (made < cuts).then_some(made + 1);
        if carried > after && made.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one).is_ok() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Bytes that do not pack, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// An archive with one image: `/etc/motd` in the first layer, `/data` of `size` bytes of noise in the second.
pub fn image_archive(folder: &Path, name: &str, seed: u64, size: usize) -> PathBuf {
    let path = folder.join(format!("{seed}.tar"));
    let config = ImageConfig {
        entrypoint: vec!["/bin/demo".to_owned()],
        env: vec!["A=b".to_owned()],
        exposed_ports: vec!["80/tcp".to_owned()],
        ..ImageConfig::default()
    };
    let data = skep_images::FileSource::Bytes(noise(seed, size));
    let builder = ImageBuilder::new(name.parse().unwrap())
        .config(config)
        .layer(vec![LayerFile::text("/etc/motd", "hello from the first layer\n"), LayerFile::directory("/tmp", 0o1777)])
        .layer(vec![LayerFile { path: "/data".to_owned(), source: data, mode: 0o600 }]);
    builder.write(std::fs::File::create(&path).unwrap()).unwrap();
    path
}

/// containerd's mounts, really mounted.
pub struct Mounted(TempDir);

impl Mounted {
    pub fn new(mounts: &[Mount]) -> Self {
        let folder = TempDir::with_prefix("skep-mount-").unwrap();
        for mount in mounts {
            let options: Vec<_> = mount.options.iter().map(String::as_str).collect();
            let target = folder.path().to_str().unwrap();
            let options = options.join(",");
            run("mount", &["-t", &mount.r#type, "-o", &options, &mount.source, target]);
        }
        Self(folder)
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.0.path().join(path)).unwrap()
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
