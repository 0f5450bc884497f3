//! The volumes of this node: directories that outlive agents and clusters.

use super::containers::current_agent;
use super::happenings::Local;
use crate::status::Board;
use async_trait::async_trait;
use skep_agent::{ContainersError, Volumes as Directory};
use skep_docker_api::{ApiError, Volume, Volumes, container_id};
use skep_types::Labels;
use std::path::Path;

/// Reads and changes the directory; who uses what says the agent.
pub struct NodeVolumes {
    directory: Directory,
    board: Board,
    told: Local,
}

fn refusal(error: ContainersError) -> ApiError {
    super::containers::refusal(error)
}

impl NodeVolumes {
    pub fn new(data_dir: &Path, board: Board, told: Local) -> Self {
        Self { directory: Directory::new(data_dir), board, told }
    }

    fn users(&self, name: &str) -> Vec<String> {
        let agent = current_agent(&self.board);
        agent.map(|agent| agent.users_of_volume(name).iter().map(container_id).collect()).unwrap_or_default()
    }

    fn shown(&self, volume: skep_agent::Volume) -> Volume {
        Volume {
            users: self.users(&volume.name),
            name: volume.name,
            mountpoint: volume.mountpoint.display().to_string(),
            created_at: volume.created_at,
            labels: volume.labels,
            options: volume.options,
            is_anonymous: volume.is_anonymous,
        }
    }
}

#[async_trait]
impl Volumes for NodeVolumes {
    async fn list(&self) -> Result<Vec<Volume>, ApiError> {
        let all = self.directory.list().map_err(refusal)?;
        Ok(all.into_iter().map(|volume| self.shown(volume)).collect())
    }

    async fn create(&self, name: &str, labels: Labels, options: Labels) -> Result<Volume, ApiError> {
        let is_new = name.is_empty() || self.directory.find(name).is_none();
        let made = self.shown(self.directory.create(name, labels, &options).map_err(refusal)?);
        if is_new {
            self.told.tell("volume", "create", &made.name, [("driver", "local")]);
        }
        Ok(made)
    }

    async fn remove(&self, name: &str) -> Result<(), ApiError> {
        let users = self.users(name);
        if !users.is_empty() {
            return Err(ApiError::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
        }
        let (directory, wanted) = (self.directory.clone(), name.to_owned());
        let removed = tokio::task::spawn_blocking(move || directory.remove(&wanted)).await;
        removed.map_err(|error| ApiError::internal(error.to_string()))?.map_err(refusal)?;
        self.told.tell("volume", "destroy", name, [("driver", "local")]);
        Ok(())
    }

    async fn size(&self, name: &str) -> Result<u64, ApiError> {
        let (directory, name) = (self.directory.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || directory.size(&name)).await.map_err(|error| ApiError::internal(error.to_string()))
    }
}
