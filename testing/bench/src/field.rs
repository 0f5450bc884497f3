//! Where everybody competes: one machine, one disk, our lab and dockerd's beside each other.

use crate::contender::Contender;
use crate::cpu::{Group, group_path};
use crate::ours::Ours;
use crate::peers::{Containerd, Ctr, Dockerd, Network, Peer, Runc, ctr};
use crate::stamp::Stamps;
use anyhow::{Context, Result};
use serde_json::Value;
use skep_kit::{Lab, LabOptions};
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

/// Daemons that run for all benchmarks. Everything is removed when dropped, daemons before their groups.
pub struct Field {
    pub lab: Lab,
    pub dockerd: Option<Arc<Peer>>,
    containerd_group: Arc<Group>,
    skepd_group: Arc<Group>,
    with_ours: bool,
    /// Static program that is the whole image.
    program: PathBuf,
    archive: PathBuf,
    spec: Value,
    stamps: Cell<usize>,
    dir: tempfile::TempDir,
}

impl Field {
    /// # Errors
    /// If a daemon cannot be started; what was made is removed.
    pub fn new(with_ours: bool, with_dockerd: bool) -> Result<Self> {
        let tag = format!("skbench{}", std::process::id());
        let containerd_group = Arc::new(Group::new(&format!("{tag}-containerd"))?);
        let skepd_group = Arc::new(Group::new(&format!("{tag}-skepd"))?);
        let archive = skep_kit::whoami_image()?;
        let program = archive.parent().context("the archive is in a directory")?.join("../static/release/skep-whoami");
        let mut lab = containerd_group.run(|| Lab::new(LabOptions::default()))?;
        lab.set_log_level("info");
        if with_ours {
            skepd_group.run(|| lab.start_skepd())?;
            lab.ctl(&["cluster", "init", "--advertise-addr", Lab::HOST])?.success().context("cluster init")?;
            lab.ctl(&["image", "load", "-q", "-i", &archive.to_string_lossy()])?.success().context("image load")?;
        }
        let dir = tempfile::Builder::new().prefix(&format!("{tag}-")).tempdir_in("/var/tmp")?;
        let whoami = dir.path().join("whoami");
        std::fs::copy(&program, &whoami).with_context(|| format!("{} is missing; scripts/demo-image makes it", program.display()))?;
        let dockerd = if with_dockerd { Some(Arc::new(Peer::start(&whoami)?)) } else { None };
        let mut field = Self {
            lab,
            dockerd,
            containerd_group,
            skepd_group,
            with_ours,
            program: whoami,
            archive,
            spec: Value::Null,
            stamps: Cell::new(0),
            dir,
        };
        field.spec = field.generated_spec()?;
        Ok(field)
    }

    /// The specification our agent (or, without it, `ctr`) makes for the task that is measured.
    fn generated_spec(&self) -> Result<Value> {
        let (mut maker, namespace): (Box<dyn Contender>, String) = if self.with_ours {
            (Box::new(self.ours()?), "skep".into())
        } else {
            (Box::new(self.ctr(1)?), format!("skbench{}c1", std::process::id()))
        };
        maker.start(1)?;
        let socket = self.lab.containerd_socket();
        let id = ctr(&socket, &namespace, &["container", "ls", "-q"])?;
        let spec = ctr(&socket, &namespace, &["container", "info", "--spec", id.trim()])?;
        maker.remove()?;
        serde_json::from_str(&spec).context("the specification is not JSON")
    }

    fn stamps(&self) -> Result<Stamps> {
        self.stamps.set(self.stamps.get() + 1);
        Stamps::new(self.dir.path().join(format!("stamps{}", self.stamps.get())))
    }

    /// # Errors
    /// If skepd does not answer.
    pub fn ours(&self) -> Result<Ours> {
        Ours::new(&self.lab, vec![Arc::clone(&self.skepd_group), Arc::clone(&self.containerd_group)], self.stamps()?)
    }

    /// # Errors
    /// If containerd refuses the image.
    pub fn ctr(&self, parallelism: usize) -> Result<Ctr> {
        let containerd = Containerd {
            socket: self.lab.containerd_socket(),
            state: self.lab.containerd_state(),
            group: Arc::clone(&self.containerd_group),
        };
        Ctr::new(containerd, &self.archive, parallelism, self.stamps()?)
    }

    /// Ourselves, dockerd on these networks, `ctr` and the floor, as far as they are there.
    ///
    /// # Errors
    /// If one of them cannot be made ready.
    pub fn contenders(&self, networks: &[Network], ctr: usize, runc: usize) -> Result<Vec<Box<dyn Contender>>> {
        let mut all: Vec<Box<dyn Contender>> = Vec::new();
        if self.with_ours {
            all.push(Box::new(self.ours()?));
        }
        if let Some(peer) = &self.dockerd {
            for network in networks {
                all.push(Box::new(Dockerd::new(Arc::clone(peer), *network, self.stamps()?)?));
            }
        }
        all.push(Box::new(self.ctr(ctr)?));
        let dir = self.dir.path().join(format!("runc{}", self.stamps.get()));
        std::fs::create_dir_all(&dir)?;
        all.push(Box::new(Runc::new(dir, &self.program, &self.spec, runc, self.stamps()?)?));
        Ok(all)
    }

    /// Groups of skepd, of its containerd and of its tasks.
    #[must_use]
    pub fn our_groups(&self) -> Vec<PathBuf> {
        let tasks = group_path(self.lab.cgroup());
        vec![self.skepd_group.path().to_owned(), self.containerd(), tasks]
    }

    /// The group of the containerd that `ctr` and we use.
    #[must_use]
    pub fn containerd(&self) -> PathBuf {
        self.containerd_group.path().to_owned()
    }

    #[must_use]
    pub fn has_ours(&self) -> bool {
        self.with_ours
    }
}
