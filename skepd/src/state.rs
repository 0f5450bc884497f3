//! What the daemon itself must remember between starts, besides identity and cluster state.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

/// `<data-dir>/node.json`: written when the node joins a cluster, removed when it leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Where the cluster port listens; on workers, where it would.
    pub listen_addr: SocketAddr,
    /// Where other nodes reach it.
    pub advertise_addr: SocketAddr,
    /// This manager's number in the raft group; 0 on workers.
    #[serde(default)]
    pub raft_id: u64,
    /// The number was drawn, but the other managers have not confirmed it yet.
    #[serde(default)]
    pub joining: bool,
    /// Known from the certificate too, but that may be sealed.
    #[serde(default)]
    pub node_id: String,
    #[serde(default)]
    pub cluster_id: String,
    /// `host:port` of managers, as the join command named them.
    #[serde(default)]
    pub managers: Vec<String>,
    /// The advertised address was found out, not asked for: it may be found anew when it is gone.
    #[serde(default)]
    pub found_addr: bool,
    /// What the daemon's configuration said when the addresses were chosen: a change of it counts from the next start.
    #[serde(default)]
    pub configured: Configured,
}

/// Addresses in the daemon's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    #[serde(default)]
    pub listen_addr: Option<SocketAddr>,
    #[serde(default)]
    pub advertise_addr: Option<String>,
}

impl NodeFile {
    /// `None` if the node is in no cluster.
    ///
    /// # Errors
    /// If the file cannot be read or understood; names it.
    pub fn load(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join("node.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let parsed = serde_json::from_str(&text);
        parsed
            .map(Some)
            .with_context(|| format!("{} is damaged; restore it from a backup, or make this node leave and join again", path.display()))
    }

    /// Written to the side, synced and renamed: a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn save(&self, data_dir: &Path) -> Result<()> {
        let path = data_dir.join("node.json");
        let write = || -> Result<()> {
            let side = data_dir.join(".node.json");
            let mut file = std::fs::File::create(&side)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&side, &path)?;
            std::fs::File::open(data_dir)?.sync_all()?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// From here on the node is in no cluster.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn remove(data_dir: &Path) -> Result<()> {
        let path = data_dir.join("node.json");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        std::fs::File::open(data_dir)?.sync_all()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NodeFile {
        NodeFile {
            listen_addr: "0.0.0.0:2377".parse().unwrap(),
            advertise_addr: "10.0.0.1:2377".parse().unwrap(),
            raft_id: 7,
            joining: true,
            node_id: "n".into(),
            cluster_id: "c".into(),
            managers: vec!["10.0.0.2:2377".into()],
            found_addr: true,
            configured: Configured { listen_addr: None, advertise_addr: Some("10.0.0.1".into()) },
        }
    }

    #[test]
    fn what_an_earlier_version_wrote_is_understood() {
        let text = r#"{"listen_addr":"0.0.0.0:2377","advertise_addr":"10.0.0.1:2377","raft_id":7}"#;
        let file: NodeFile = serde_json::from_str(text).unwrap();
        assert_eq!((file.raft_id, file.joining, file.found_addr), (7, false, false));
        assert_eq!(file.configured, Configured::default());
    }

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(NodeFile::load(dir.path()).unwrap(), None);
        let file = sample();
        file.save(dir.path()).unwrap();
        assert_eq!(NodeFile::load(dir.path()).unwrap(), Some(file));
        std::fs::write(dir.path().join("node.json"), "{").unwrap();
        assert!(format!("{:#}", NodeFile::load(dir.path()).unwrap_err()).contains("damaged"));
    }
}
