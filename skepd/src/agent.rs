//! What the agent of this node is made of. [`AgentKeeper`] keeps it running.

mod keeper; // begun again when it ended

pub use keeper::{AgentKeeper, AgentState};

use crate::config::{Config, Wireguard};
use skep_agent::{
    Agent, AgentConfig, AgentDeps, AgentError, Answer, ContainerdConfig, LogWriterCommand, ManagerAddress, NetlbNetwork, NodeFacts,
    NodeImages, NodeSettings, TlsDial, TunnelEnds, machine_architecture, machine_hostname, node_description,
};
use skep_ca::SecurityConfig;
use skep_images::ImageStore;
use skep_netlb::dns::Dns;
use skep_netlb::{Driver, Netlb};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// A task that does not end keeps a leaving node this long at most; what is left is removed at the next start.
pub const LEAVE_LIMIT: Duration = Duration::from_secs(60);

/// What every agent of this node is made of.
#[derive(Clone)]
pub struct AgentParts {
    pub config: Arc<Config>,
    pub security: SecurityConfig,
    pub images: ImageStore,
    pub network: Netlb,
    /// Its servers outlive the agent: names are answered while another one is begun.
    pub dns: Dns,
    /// What managers reach on this node by tunnels.
    pub tunnels: Option<Arc<dyn Answer>>,
    /// Of a node whose identity is sealed; else the identity says it.
    pub node_id: String,
    /// `host:port` of managers, as the join command named them; others are learnt from the sessions.
    pub managers: Vec<String>,
    /// `host:port` of the manager beside it.
    pub local_manager: Option<String>,
}

impl AgentParts {
    async fn start(&self, stop: &CancellationToken) -> Result<Agent, AgentError> {
        let node_id = self.security.identity().map_or_else(|| self.node_id.clone(), |identity| identity.node_id().to_string());
        let network = NetlbNetwork::with_dns(self.network.clone(), self.dns.clone());
        let facts =
            NodeFacts { id: node_id.clone(), hostname: machine_hostname(), os: "linux".into(), architecture: machine_architecture() };
        let network = network.of_node(facts.clone()).remembering(&self.config.data_dir.join("agent/networks.json"), &node_id);
        let network = match tunnel_driver(self.config.wireguard) {
            Some(driver) => {
                let ends = TunnelEnds { driver, port: self.config.wireguard_port };
                network.encrypting(&self.config.data_dir.join("agent/wireguard"), ends)
            }
            None => network,
        };
        let config = &self.config;
        let mut containerd = ContainerdConfig::new(config.containerd.clone(), config.data_dir.clone(), config.run_dir.clone(), facts);
        containerd.namespace.clone_from(&config.containerd_namespace);
        containerd.cgroup_parent.clone_from(&config.cgroup_parent);
        let settings = NodeSettings {
            engine_labels: config.labels.clone(),
            generic_resources: config.generic_resources.clone(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            ..NodeSettings::default()
        };
        let security = self.security.clone();
        let deps = AgentDeps {
            dial: Arc::new(TlsDial::new(&self.security)),
            describe: Arc::new(move || node_description(&settings, security.tls_info().map(tls_info))),
            images: Arc::new(NodeImages::new(self.images.clone())),
            network: Arc::new(network),
            tunnels: self.tunnels.clone(),
        };
        let config = AgentConfig {
            containerd,
            log_writer: log_writer(&config.run_dir),
            managers: self.managers.iter().map(|addr| ManagerAddress { node_id: String::new(), addr: addr.clone() }).collect(),
            local_manager: self.local_manager.clone(),
            data_path_addr: config.data_path_addr,
        };
        Agent::start(config, deps, stop).await
    }

    /// Removes every task of an earlier cluster, with all it had but named volumes: what is in them is the user's.
    /// Repeats without harm.
    pub async fn clear(&self) {
        let records = self.config.data_dir.join("agent");
        if !debris(&records).is_empty() {
            match self.remove_tasks(&records).await {
                Ok(()) => {
                    for path in debris(&records) {
                        if let Err(error) = remove(&path) {
                            tracing::warn!(%error, path = %path.display(), "could not remove");
                        }
                    }
                }
                Err(why) => tracing::warn!(why, "tasks of an earlier cluster may be left; the next start tries again"),
            }
        }
        self.dns.stop_all().await;
        if let Err(error) = self.network.remove_everything().await {
            tracing::warn!(error = %chain(&error), "network objects may be left; the next start tries again");
        }
    }

    /// Why not, if it cannot be done.
    async fn remove_tasks(&self, records: &std::path::Path) -> Result<(), String> {
        // A containerd that is only late is waited for where there is something to remove.
        if !has_tasks(records) && UnixStream::connect(&self.config.containerd).await.is_err() {
            return Err("containerd does not answer, and no tasks are known".into());
        }
        let stop = CancellationToken::new();
        let cleared = tokio::time::timeout(LEAVE_LIMIT, async { self.start(&stop).await?.clear().await }).await;
        stop.cancel();
        match cleared {
            Ok(outcome) => outcome.map_err(|error| chain(&error)),
            Err(_) => Err("they take too long to end".into()),
        }
    }
}

fn tunnel_driver(asked: Wireguard) -> Option<Driver> {
    match asked {
        Wireguard::Auto => Some(Driver::Auto),
        Wireguard::Kernel => Some(Driver::Kernel),
        Wireguard::Userspace => Some(Driver::Userspace),
        Wireguard::Off => None,
    }
}

/// Whether an agent noted tasks here that it has not removed yet, or containers that are none.
fn has_tasks(records: &std::path::Path) -> bool {
    ["tasks", "containers"].iter().any(|kind| std::fs::read_dir(records.join(kind)).is_ok_and(|mut noted| noted.next().is_some()))
}

/// How many containers of this node people made by hand.
pub fn made_by_hand(data_dir: &std::path::Path) -> usize {
    std::fs::read_dir(data_dir.join("agent/containers")).map_or(0, Iterator::count)
}

/// What an agent of an earlier cluster left in its directory, other than volumes.
fn debris(records: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(records).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name() != "volumes").map(|entry| entry.path()).collect()
}

fn remove(path: &std::path::Path) -> std::io::Result<()> {
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

/// This very program; the path stays right when the file is replaced by an upgrade.
fn log_writer(run_dir: &std::path::Path) -> LogWriterCommand {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("skepd"));
    LogWriterCommand { program, args: vec!["log-writer".into(), "--run-dir".into(), run_dir.into()], envs: Vec::new() }
}

fn tls_info(info: skep_ca::TlsInfo) -> skep_types::TlsInfo {
    skep_types::TlsInfo {
        trust_root: info.trust_root,
        cert_issuer_subject: info.cert_issuer_subject,
        cert_issuer_public_key: info.cert_issuer_public_key,
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text += &format!(": {deeper}");
        cause = deeper.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_no_debris_of_a_cluster_that_was_left() {
        let dir = tempfile::tempdir().unwrap();
        assert!(debris(&dir.path().join("none")).is_empty());
        for name in ["volumes/data/_data", "tasks", "logs/x"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("managers.json"), "").unwrap();
        let mut found = debris(dir.path());
        found.sort();
        assert_eq!(found, ["logs", "managers.json", "tasks"].map(|name| dir.path().join(name)));
        for path in found {
            remove(&path).unwrap();
        }
        assert!(debris(dir.path()).is_empty());
        assert!(dir.path().join("volumes/data/_data").is_dir());
    }
}
