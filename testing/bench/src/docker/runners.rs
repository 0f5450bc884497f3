//! Who runs containers for a command line: ourselves and dockerd by 20.10's client, containerd by `ctr`.

use crate::cpu::{Group, group_path};
use crate::field::Field;
use crate::peers::ctr;
use anyhow::{Context as _, Result};
use skep_kit::run;
use std::path::{Path, PathBuf};

/// The image: the programs of busybox that are used here, each a file, so that no shell has to find them.
const IMAGE: &str = "skep-bench-box:1";
const PROGRAMS: [&str; 4] = ["sh", "true", "cat", "sleep"];
/// The container in which processes are begun.
const STAYING: &str = "staying";

/// Somebody who runs containers. Everything is removed when dropped.
pub struct Runner {
    name: &'static str,
    how: How,
    /// Those of the clients; a client is part of what a command costs.
    clients: Group,
    daemons: Vec<PathBuf>,
    made: usize,
}

enum How {
    /// The client and the socket it asks.
    Docker {
        client: PathBuf,
        socket: PathBuf,
    },
    Ctr {
        socket: PathBuf,
        namespace: String,
    },
}

/// Makes the archive with the image.
///
/// # Errors
/// If this machine has no busybox, or `pack` was not built.
pub fn image(dir: &Path) -> Result<PathBuf> {
    let busybox = run("which", &["busybox"])?.success().context("this benchmark needs busybox, statically linked")?;
    let pack = std::env::current_exe()?.parent().context("this program has no directory")?.join("examples/pack");
    let archive = dir.join("box.tar");
    let files: Vec<String> = PROGRAMS.iter().map(|program| format!("{}:/bin/{program}", busybox.trim())).collect();
    let archive_text = archive.to_string_lossy().into_owned();
    let mut arguments = vec!["--name", IMAGE, "--env", "PATH=/bin", "--cmd", "true"];
    arguments.extend(files.iter().map(String::as_str));
    arguments.push(&archive_text);
    run(&pack.to_string_lossy(), &arguments)?.success().context("the image could not be made")?;
    Ok(archive)
}

impl Runner {
    /// Everybody, with the image.
    ///
    /// # Errors
    /// If somebody refuses it.
    pub fn all(field: &Field, archive: &Path) -> Result<Vec<Self>> {
        let distribution = std::env::var_os("PEER_DIST").context("PEER_DIST is not set; scripts/bench sets it")?;
        let client = PathBuf::from(distribution).join("usr/bin/docker");
        let mut all = Vec::new();
        if field.has_ours() {
            let socket = field.lab.run_dir().join("docker.sock");
            let how = How::Docker { client: client.clone(), socket };
            all.push(Self::new("skep", how, field.our_groups())?);
        }
        if let Some(peer) = &field.dockerd {
            let how = How::Docker { client, socket: peer.path("SOCKET") };
            all.push(Self::new("dockerd", how, vec![peer.group()])?);
        }
        let namespace = format!("skbench{}d", std::process::id());
        let daemons = vec![field.containerd(), group_path(&namespace)];
        all.push(Self::new("ctr", How::Ctr { socket: field.lab.containerd_socket(), namespace }, daemons)?);
        for runner in &all {
            runner.load(archive)?;
        }
        Ok(all)
    }

    fn new(name: &'static str, how: How, daemons: Vec<PathBuf>) -> Result<Self> {
        let clients = Group::new(&format!("skbench{}-client-{name}", std::process::id()))?;
        Ok(Self { name, how, clients, daemons, made: 0 })
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Those of its daemons and containers.
    #[must_use]
    pub fn daemons(&self) -> &[PathBuf] {
        &self.daemons
    }

    /// The same and those of its clients.
    #[must_use]
    pub fn groups(&self) -> Vec<PathBuf> {
        self.daemons.iter().cloned().chain([self.clients.path().to_owned()]).collect()
    }

    /// The socket of the Docker API; `ctr` has none.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        match &self.how {
            How::Docker { socket, .. } => Some(socket),
            How::Ctr { .. } => None,
        }
    }

    /// A command of its client, counted.
    fn call(&self, arguments: &[&str]) -> Result<String> {
        self.clients.run(|| match &self.how {
            How::Docker { client, socket } => {
                let host = format!("unix://{}", socket.display());
                let all = [&["--host", &host][..], arguments].concat();
                run(&client.to_string_lossy(), &all)?.success().with_context(|| format!("{}: docker {}", self.name, arguments.join(" ")))
            }
            How::Ctr { socket, namespace } => ctr(socket, namespace, arguments),
        })
    }

    fn load(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_string_lossy();
        match self.how {
            How::Docker { .. } => self.call(&["load", "-q", "-i", &archive]),
            How::Ctr { .. } => self.call(&["image", "import", &archive]),
        }
        .map(drop)
    }

    fn full_image() -> String {
        format!("docker.io/library/{IMAGE}")
    }

    /// A container that does nothing, from its creation until it is gone.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn run_true(&mut self) -> Result<()> {
        self.made += 1;
        let id = format!("run-{}", self.made);
        match self.how {
            How::Docker { .. } => self.call(&["run", "--rm", IMAGE, "true"]),
            How::Ctr { .. } => self.call(&["run", "--rm", "--seccomp", &Self::full_image(), &id, "true"]),
        }
        .map(drop)
    }

    /// A process that does nothing, in a container that stays.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn exec_true(&mut self) -> Result<()> {
        self.made += 1;
        let id = format!("exec-{}", self.made);
        match self.how {
            How::Docker { .. } => self.call(&["exec", STAYING, "true"]),
            How::Ctr { .. } => self.call(&["task", "exec", "--exec-id", &id, STAYING, "true"]),
        }
        .map(drop)
    }

    /// Begins the container for [`exec_true`](Self::exec_true).
    ///
    /// # Errors
    /// If it does not start.
    pub fn stay(&self) -> Result<()> {
        match self.how {
            How::Docker { .. } => self.call(&["run", "-d", "--name", STAYING, IMAGE, "sleep", "100000"]),
            How::Ctr { .. } => self.call(&["run", "-d", "--seccomp", &Self::full_image(), STAYING, "sleep", "100000"]),
        }
        .map(drop)
    }

    /// A container that writes `file`, found in `dir`, so many times; its id. It is not started.
    ///
    /// # Errors
    /// If it is refused.
    pub fn create_writer(&self, name: &str, dir: &Path, file: &str, times: usize) -> Result<()> {
        let bind = format!("{}:/data:ro", dir.display());
        let script = format!("i=0; while [ $i -lt {times} ]; do cat /data/{file}; i=$((i+1)); done");
        self.call(&["create", "--name", name, "-v", &bind, IMAGE, "sh", "-c", &script]).map(drop)
    }

    /// # Errors
    /// If it is refused.
    pub fn start(&self, name: &str) -> Result<()> {
        self.call(&["start", name]).map(drop)
    }

    /// Removes a container, whether it runs or not, whether it is there or not.
    pub fn leave(&self, name: &str) {
        let outcome = match self.how {
            How::Docker { .. } => self.call(&["rm", "-f", name]),
            How::Ctr { .. } => self.call(&["task", "rm", "-f", name]).and_then(|_| self.call(&["container", "rm", name])),
        };
        if let Err(error) = outcome {
            eprintln!("{}: {name} was not removed: {error:#}", self.name);
        }
    }

    /// Ends what [`stay`](Self::stay) began.
    pub fn end_stay(&self) {
        self.leave(STAYING);
    }
}
