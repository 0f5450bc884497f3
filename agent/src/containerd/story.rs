//! What became of a task's container: `<data>/agent/logs/<task>/container.json`, kept as long as the task's logs.
//!
//! For those who look only: nothing is decided on it, and a task without it is as good. It is there because containerd's record and the
//! container's files go with the process, and people ask afterwards.

use super::config::ContainerdConfig;
use super::spec::ReadyMount;
use crate::executor::{ImageReady, Sandbox};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use skep_types::{TaskId, Timestamp};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const FILE: &str = "container.json";

/// A container as it was made, and when it was what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Story {
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    /// `sha256:…` of the image's configuration.
    pub image_id: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub dir: String,
    pub hostname: String,
    pub mounts: Vec<StoryMount>,
    /// On this node's own network.
    pub addresses: Vec<IpAddr>,
    pub snapshotter: String,
    /// Somebody removed it: it is shown to nobody any more.
    pub is_removed: bool,
}

/// Something mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoryMount {
    /// `bind`, `volume`, `tmpfs`.
    pub kind: String,
    /// Of a volume.
    pub name: String,
    pub source: PathBuf,
    pub target: String,
    pub is_writable: bool,
    pub propagation: String,
}

impl StoryMount {
    fn of(mount: &ReadyMount, volumes: &Path) -> Self {
        let volume = mount.source.strip_prefix(volumes).ok().and_then(|path| path.iter().next()).map(|name| name.to_string_lossy());
        let propagations = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];
        let propagation = mount.options.iter().find(|option| propagations.contains(&option.as_str()));
        Self {
            kind: if volume.is_some() { "volume".into() } else { mount.kind.into() },
            name: volume.map(|name| name.into_owned()).unwrap_or_default(),
            source: if mount.kind == "tmpfs" { PathBuf::new() } else { mount.source.clone() },
            target: mount.target.clone(),
            is_writable: !mount.options.iter().any(|option| matches!(option.as_str(), "ro" | "rro")),
            propagation: propagation.cloned().unwrap_or_default(),
        }
    }
}

/// What a container is made of.
pub(super) fn begin(
    config: &ContainerdConfig,
    image: &ImageReady,
    sandbox: &Sandbox,
    spec: &Spec,
    mounts: &[ReadyMount],
    now: Timestamp,
) -> Story {
    let process = spec.process().as_ref();
    let list =
        |pick: fn(&oci_spec::runtime::Process) -> &Option<Vec<String>>| process.and_then(|one| pick(one).clone()).unwrap_or_default();
    Story {
        created_at: now,
        started_at: None,
        image_id: image.id.clone(),
        args: list(|process| process.args()),
        env: list(|process| process.env()),
        dir: process.map(|process| process.cwd().display().to_string()).unwrap_or_default(),
        hostname: spec.hostname().clone().unwrap_or_default(),
        // Secrets and configs are named in the service.
        mounts: mounts
            .iter()
            .filter(|mount| !mount.source.starts_with(config.tasks_dir()) || mount.source.iter().any(|part| part == "pins"))
            .map(|mount| StoryMount::of(mount, &config.volumes_dir()))
            .collect(),
        addresses: sandbox.addresses.clone(),
        snapshotter: image.snapshotter.clone(),
        is_removed: false,
    }
}

impl Story {
    /// `None` if there is none, or none that can be read.
    #[must_use]
    pub fn load(config: &ContainerdConfig, task: &TaskId) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(config, task)).ok()?).ok()
    }

    /// # Errors
    /// Of the file system; what was there is still there then.
    pub fn save(&self, config: &ContainerdConfig, task: &TaskId) -> io::Result<()> {
        let path = path(config, task);
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let new = path.with_extension("new");
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        // The environment may hold what nobody else is to see.
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        io::Write::write_all(&mut file, &text)?;
        fs::rename(&new, &path)
    }
}

fn path(config: &ContainerdConfig, task: &TaskId) -> PathBuf {
    config.logs_dir().join(task.as_str()).join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::template::NodeFacts;

    #[test]
    fn a_story_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let facts = NodeFacts { id: String::new(), hostname: String::new(), os: String::new(), architecture: String::new() };
        let config = ContainerdConfig::new("/none".into(), dir.path().into(), dir.path().join("run"), facts);
        let task = TaskId::for_test(1);
        assert_eq!(Story::load(&config, &task), None);
        let volume = ReadyMount {
            target: "/data".into(),
            kind: "bind",
            source: config.volumes_dir().join("db/_data"),
            options: vec!["rbind".into(), "rprivate".into(), "ro".into()],
        };
        let mount = StoryMount::of(&volume, &config.volumes_dir());
        assert_eq!(
            (mount.kind.as_str(), mount.name.as_str(), mount.is_writable, mount.propagation.as_str()),
            ("volume", "db", false, "rprivate")
        );
        let story = Story { created_at: Timestamp(5), mounts: vec![mount], ..Story::default() };
        story.save(&config, &task).unwrap();
        assert_eq!(Story::load(&config, &task), Some(story));
    }
}
