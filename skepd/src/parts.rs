//! What the node has whether or not it is in a cluster.

use crate::agent::{AgentParts, chain};
use crate::config::Config;
use crate::state::NodeFile;
use crate::vault::Vault;
use anyhow::{Context, Result};
use skep_agent::{Answer, NodeImages};
use skep_ca::SecurityConfig;
use skep_images::{ImageStore, RegistryConfig};
use skep_netlb::Netlb;
use skep_netlb::dns::{Dns, DnsLimits};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Beside the directory of the manager's store: what a recovery kept, what a crash left.
const BESIDE_RAFT: &str = "raft.";

/// Before the manager starts; containerd answers within milliseconds if it is there.
const SWEEP_LIMIT: Duration = Duration::from_secs(1);

/// Images, network, identity, configuration. Clones share them.
#[derive(Clone)]
pub struct NodeParts {
    pub config: Arc<Config>,
    pub security: SecurityConfig,
    pub vault: Vault,
    /// What managers reach on this node, once it is known.
    pub tunnels: Option<Arc<dyn Answer>>,
    images: ImageStore,
    network: Netlb,
    dns: Dns,
}

impl NodeParts {
    pub fn start(config: &Arc<Config>, security: &SecurityConfig, vault: &Vault) -> Result<Self> {
        let registries = RegistryConfig { insecure: config.insecure_registries.clone() };
        let images = ImageStore::connect_with(&config.containerd, &config.containerd_namespace, registries)?;
        let instance = config.run_dir.to_string_lossy().into_owned();
        let network = Netlb::start(skep_netlb::Config { run_dir: config.run_dir.clone(), instance, lb_driver: config.lb_driver })?;
        Ok(Self {
            config: Arc::clone(config),
            security: security.clone(),
            vault: vault.clone(),
            tunnels: None,
            images,
            network,
            dns: Dns::new(DnsLimits::default()),
        })
    }

    pub fn image_store(&self) -> &ImageStore {
        &self.images
    }

    pub fn image_service(&self) -> NodeImages {
        NodeImages::new(self.images.clone())
    }

    /// Leases of pulls that a crash cut short. A containerd that is late must not keep the manager from its work; then they expire
    /// by themselves.
    pub async fn sweep(&self) {
        let why = match tokio::time::timeout(SWEEP_LIMIT, self.images.sweep()).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "containerd does not answer yet".into(),
        };
        tracing::debug!(why, "leases of earlier pulls stay until they expire");
    }

    /// The agent of a node that is in a cluster, or of one that clears away what it had there.
    pub fn agent(&self, node: Option<&NodeFile>, local_manager: Option<String>) -> AgentParts {
        AgentParts {
            config: Arc::clone(&self.config),
            security: self.security.clone(),
            images: self.images.clone(),
            network: self.network.clone(),
            dns: self.dns.clone(),
            tunnels: self.tunnels.clone(),
            node_id: node.map(|node| node.node_id.clone()).unwrap_or_default(),
            managers: node.map(|node| node.managers.clone()).unwrap_or_default(),
            local_manager,
        }
    }

    /// The directory of the manager's store.
    pub fn raft_dir(&self) -> PathBuf {
        self.config.data_dir.join("raft")
    }

    /// Where the agent keeps the managers it knows.
    pub fn managers_file(&self) -> PathBuf {
        self.config.data_dir.join("agent/managers.json")
    }

    /// Removes the manager's store, and the mark of how far it had come. Repeats without harm.
    pub fn erase_raft(&self) -> Result<()> {
        remove(&self.raft_dir())?;
        remove(&self.raft_dir().with_extension("mark"))
    }

    /// Removes identity and cluster state. Repeats without harm.
    pub async fn forget(&self) -> Result<()> {
        self.vault.clear().await?;
        skep_failpoint::failpoint!("skepd.forget.identity");
        self.erase_raft()?;
        for entry in std::fs::read_dir(&self.config.data_dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(BESIDE_RAFT) {
                remove(&entry.path())?;
            }
        }
        // The managers of one cluster are strangers to the next.
        match std::fs::remove_file(self.managers_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", self.managers_file().display()));
            }
            _ => {}
        }
        self.security.clear()?;
        Ok(())
    }
}

/// A file, or a directory with all that is in it.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
