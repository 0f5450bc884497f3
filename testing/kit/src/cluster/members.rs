use super::{Cluster, SOON, Size, each};
use crate::audit::Inventory;
use crate::process::whoami_image;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use skep_proto::v1;
use std::time::Duration;

impl Cluster {
    /// Hosts that are one cluster: the first founded it, the others joined by its tokens, and all are ready. Every host has the
    /// demonstration image `whoami:latest`.
    ///
    /// # Errors
    /// See [`hosts`](Self::hosts).
    pub fn formed(size: Size) -> Result<Self> {
        let mut cluster = Self::hosts(size)?;
        cluster.form(&[])?;
        Ok(cluster)
    }

    /// Founds the cluster (`flags` go to `cluster init`) and joins all others.
    ///
    /// # Errors
    /// If a step is refused.
    pub fn form(&mut self, flags: &[&str]) -> Result<()> {
        let address = self.address(0);
        self.ctl(0, &[&["cluster", "init", "--advertise-addr", &address][..], flags].concat())?.success().context("cluster init")?;
        for host in 1..self.hosts.len() {
            self.join(host, if host < self.size.managers { "manager" } else { "worker" })?;
        }
        self.load_image()?;
        self.wait_ready(SOON)
    }

    /// Makes a host join as `manager` or `worker`, through the first host.
    ///
    /// # Errors
    /// If it is refused.
    pub fn join(&self, host: usize, role: &str) -> Result<()> {
        self.join_through(host, role, 0)
    }

    /// Makes a host join through the manager on host `through`.
    ///
    /// # Errors
    /// If it is refused.
    pub fn join_through(&self, host: usize, role: &str, through: usize) -> Result<()> {
        let token = self.token(through, role)?;
        let (own, manager) = (self.address(host), format!("{}:2377", self.address(through)));
        let arguments = ["cluster", "join", "--token", &token, "--advertise-addr", &own, &manager];
        self.ctl(host, &arguments)?.success().with_context(|| format!("{} joins as {role}", self.hosts[host].name()))?;
        Ok(())
    }

    /// # Errors
    /// If the manager on that host does not tell.
    pub fn token(&self, host: usize, role: &str) -> Result<String> {
        Ok(self.ctl(host, &["cluster", "join-token", "-q", role])?.success()?.trim().to_owned())
    }

    /// Gives every host that runs the demonstration image.
    ///
    /// # Errors
    /// If one does not take it.
    pub fn load_image(&mut self) -> Result<()> {
        let image = whoami_image()?.to_string_lossy().into_owned();
        each(&mut self.hosts, |host| {
            if host.runs() && host.containerd_pid().is_some() {
                host.ctl(&["image", "load", "-q", "-i", &image])?.success().context("image load")?;
            }
            Ok(())
        })
    }

    /// Waits until every host that runs is a ready node, by the word of the manager on the first host that is one.
    ///
    /// # Errors
    /// If that takes longer than `limit`, with what is missing.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        let wanted = self.hosts.iter().filter(|host| host.is_up()).count();
        eventually(limit, "all nodes are ready", || {
            let nodes = self.api(self.a_manager()?)?.nodes()?;
            let state = |node: &v1::Node| node.status.as_ref().map_or(0, |status| status.state);
            let ready = nodes.iter().filter(|node| state(node) == v1::node_status::State::Ready as i32).count();
            ensure!(ready >= wanted, "{ready} of {wanted} nodes are ready");
            Ok(())
        })
    }

    /// # Errors
    /// If the host is no node.
    pub fn node_id(&self, host: usize) -> Result<String> {
        let id = self.api(host)?.status(false)?.node_id;
        ensure!(!id.is_empty(), "{} is in no cluster", self.hosts[host].name());
        Ok(id)
    }

    /// A host's node, as the manager on `through` knows it.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, through: usize, host: usize) -> Result<v1::Node> {
        let id = self.node_id(host)?;
        let nodes = self.api(through)?.nodes()?;
        nodes.into_iter().find(|node| node.id == id).with_context(|| format!("no node {id}"))
    }

    /// Makes every host leave, workers first, and looks whether anything is left that was not there before (`empty`, for each host).
    ///
    /// # Errors
    /// If a host cannot leave, or something is left.
    pub(crate) fn everybody_leaves(&mut self, empty: &[Inventory]) -> Result<()> {
        for host in self.workers().chain(self.managers()).filter(|host| self.hosts[*host].is_up()) {
            let status = self.api(host)?.status(false)?;
            if !status.node_id.is_empty() {
                self.ctl(host, &["cluster", "leave", "--force"])?
                    .success()
                    .with_context(|| format!("{} leaves", self.hosts[host].name()))?;
            }
        }
        for (host, empty) in self.hosts.iter().zip(empty).filter(|(host, _)| host.is_up()) {
            eventually(SOON, &format!("nothing is left on {}", host.name()), || {
                let leaked = Inventory::take(host)?.leaked_since(empty);
                ensure!(leaked.is_empty(), "{leaked:#?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}
