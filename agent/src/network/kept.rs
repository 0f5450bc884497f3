//! The last picture on this node's disk: a node that restarts while no manager can be reached serves on with it. The first
//! complete message of a manager takes its place.

use super::picture::Picture;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file, replaced by rename, so that it is whole at any moment. Not synced: after a power cut nothing is served on.
#[derive(Debug, Clone)]
pub struct Kept {
    path: PathBuf,
    /// What another node, or this machine in another cluster, was told does not count.
    node_id: String,
}

#[derive(Serialize, Deserialize)]
struct File {
    node: String,
    picture: Picture,
}

impl Kept {
    pub fn new(path: &Path, node_id: &str) -> Self {
        Self { path: path.to_owned(), node_id: node_id.to_owned() }
    }

    /// Nothing, if there is none for this node. A damaged one is as good as none.
    pub fn load(&self) -> Option<Picture> {
        let text = fs::read(&self.path).ok()?;
        match serde_json::from_slice::<File>(&text) {
            Ok(file) => (file.node == self.node_id).then_some(file.picture),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "what is known of other nodes is damaged; a manager will tell it again");
                None
            }
        }
    }

    /// # Errors
    /// Of the file system; the old file is still there then.
    pub fn save(&self, picture: Picture) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let text = serde_json::to_vec(&File { node: self.node_id.clone(), picture }).map_err(io::Error::other)?;
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        skep_failpoint::failpoint!("agent.networks.written");
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixtures::back;
    use crate::network::picture::Readiness;

    #[test]
    fn it_counts_for_the_node_that_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent/networks.json");
        let known = back(&[1, 2], &[(1, 2, Readiness::Ready)]);
        let picture = Picture {
            revision: 3,
            node_index: 1,
            vxlan_port: 4789,
            networks: [(known.network.id.clone(), known)].into(),
            ..Picture::default()
        };
        let kept = Kept::new(&path, "n1");
        assert_eq!(kept.load(), None);
        kept.save(picture.clone()).unwrap();
        assert_eq!(kept.load(), Some(picture));
        assert_eq!(Kept::new(&path, "n2").load(), None);
        fs::write(&path, "{").unwrap();
        assert_eq!(kept.load(), None);
    }
}
