//! The volumes of this node, of its one driver `local`: `<data>/agent/volumes/<name>/_data`, labels beside it.

use super::ContainersError;
use crate::containerd::{check_options, is_volume_name, keep_options, options_of, unmount};
use skep_types::{Labels, Timestamp};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

const LABELS: &str = "labels.json";
/// On those that nobody gave a name (as dockerd).
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// One volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    /// The directory that containers see.
    pub mountpoint: PathBuf,
    pub created_at: Timestamp,
    pub labels: Labels,
    /// Of its driver: what is mounted while somebody uses it.
    pub options: Labels,
    pub is_anonymous: bool,
}

/// The directory of all volumes. Works without an agent, too: volumes outlive it.
#[derive(Debug, Clone)]
pub struct Volumes(PathBuf);

impl Volumes {
    /// Of the node with this data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self(data_dir.join("agent/volumes"))
    }

    /// In order of their names.
    ///
    /// # Errors
    /// Of the file system.
    pub fn list(&self) -> Result<Vec<Volume>, ContainersError> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(ContainersError::io("read", &self.0))?,
        };
        let mut list: Vec<Volume> = entries.flatten().filter_map(|entry| self.find(entry.file_name().to_str()?)).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    #[must_use]
    pub fn find(&self, name: &str) -> Option<Volume> {
        if !is_volume_name(name) {
            return None;
        }
        let dir = self.0.join(name);
        let mountpoint = dir.join("_data");
        let meta = fs::symlink_metadata(&mountpoint).ok().filter(fs::Metadata::is_dir)?;
        // Not of `_data`, which is made and filled over time.
        let made = fs::metadata(&dir).ok().and_then(|meta| meta.created().ok());
        let created_at = made
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or_else(|| Timestamp::from_secs(meta.ctime()), |since| Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)));
        let labels: Labels = fs::read(dir.join(LABELS)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        // Those of tasks are named by them: `<task>-<number>`.
        let of_task = |name: &str| name.rsplit_once('-').is_some_and(|(task, number)| task.len() == 25 && number.parse::<u32>().is_ok());
        let is_anonymous = labels.contains_key(ANONYMOUS_LABEL) || of_task(name);
        let options = options_of(&dir).unwrap_or_default();
        Some(Volume { name: name.to_owned(), mountpoint, created_at, labels, options, is_anonymous })
    }

    /// Makes it unless it is there; an empty name makes an anonymous one.
    ///
    /// # Errors
    /// For a name that is none, options that cannot be mounted or that an existing one has not, and of the file system.
    pub fn create(&self, name: &str, mut labels: Labels, options: &Labels) -> Result<Volume, ContainersError> {
        check_options(options).map_err(|error| ContainersError::BadVolumeOptions { problem: error.to_string() })?;
        let name = match name {
            "" => {
                labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
                let random: [u8; 32] = rand::random();
                random.iter().map(|byte| format!("{byte:02x}")).collect()
            }
            given => given.to_owned(),
        };
        if !is_volume_name(&name) {
            return Err(ContainersError::BadVolumeName { volume: name });
        }
        match self.find(&name) {
            Some(volume) if options.is_empty() || volume.options == *options => return Ok(volume),
            Some(_) => return Err(ContainersError::OtherVolumeOptions { volume: name }),
            None => {}
        }
        let dir = self.0.join(&name);
        fs::create_dir_all(dir.join("_data")).map_err(ContainersError::io("make the volume", &dir))?;
        if !options.is_empty() {
            keep_options(&dir, options).map_err(ContainersError::io("note the options of", &dir))?;
        }
        if !labels.is_empty() {
            let path = dir.join(LABELS);
            let text = serde_json::to_vec(&labels).map_err(|error| ContainersError::io("write", &path)(error.into()))?;
            fs::write(&path, text).map_err(ContainersError::io("write", &path))?;
        }
        self.find(&name).ok_or(ContainersError::NoSuchVolume { volume: name })
    }

    /// Removes it with everything in it. Whether somebody uses it is for the caller to know.
    ///
    /// # Errors
    /// If there is none, and of the file system.
    pub fn remove(&self, name: &str) -> Result<(), ContainersError> {
        let volume = self.find(name).ok_or_else(|| ContainersError::NoSuchVolume { volume: name.to_owned() })?;
        let dir = self.0.join(volume.name);
        // What is mounted must never be emptied.
        if options_of(&dir).is_some() {
            unmount(&dir.join("_data")).map_err(|error| ContainersError::io("unmount", &dir)(std::io::Error::other(error.words())))?;
        }
        fs::remove_dir_all(&dir).map_err(ContainersError::io("remove the volume", dir))
    }

    /// Bytes that its files take on the disk; 0 for one that is a mount, of a server perhaps.
    #[must_use]
    pub fn size(&self, name: &str) -> u64 {
        self.find(name).filter(|_| options_of(&self.0.join(name)).is_none()).map_or(0, |volume| size(&volume.mountpoint))
    }
}

fn size(dir: &Path) -> u64 {
    let entry = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(entry).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_driver_are_kept_and_never_changed_by_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path());
        let options = |pairs: &[(&str, &str)]| -> Labels { pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect() };
        let nfs = options(&[("type", "nfs"), ("device", ":/export"), ("o", "addr=nas")]);
        assert_eq!(volumes.create("share", Labels::new(), &nfs).unwrap().options, nfs);
        for same in [&nfs, &Labels::new()] {
            assert_eq!(volumes.create("share", Labels::new(), same).unwrap().options, nfs);
        }
        let other = options(&[("type", "tmpfs"), ("device", "tmpfs")]);
        assert!(matches!(volumes.create("share", Labels::new(), &other), Err(ContainersError::OtherVolumeOptions { .. })));
        let odd = volumes.create("odd", Labels::new(), &options(&[("typ", "nfs")])).unwrap_err();
        assert!(matches!(&odd, ContainersError::BadVolumeOptions { problem } if problem.contains("\"typ\"")), "{odd}");
        assert!(volumes.find("odd").is_none());
        volumes.remove("share").unwrap();
    }

    #[test]
    fn volumes_are_made_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path());
        assert_eq!(volumes.list().unwrap(), []);
        let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
        let made = volumes.create("db", labels.clone(), &Labels::new()).unwrap();
        assert_eq!((made.labels, made.is_anonymous, made.mountpoint), (labels, false, dir.path().join("agent/volumes/db/_data")));
        // Again, and it is the same.
        assert_eq!(volumes.create("db", Labels::new(), &Labels::new()).unwrap().labels.len(), 1);
        let nameless = volumes.create("", Labels::new(), &Labels::new()).unwrap();
        assert!(nameless.is_anonymous && nameless.name.len() == 64);
        fs::write(made_path(&volumes).join("x"), vec![1; 5000]).unwrap();
        assert!(volumes.size("db") >= 5000);
        volumes.remove("db").unwrap();
        assert!(matches!(volumes.remove("db"), Err(ContainersError::NoSuchVolume { .. })));
        assert_eq!(volumes.list().unwrap(), [nameless]);
        for bad in ["../x", ".x", "a/b", "a b"] {
            assert!(matches!(volumes.create(bad, Labels::new(), &Labels::new()), Err(ContainersError::BadVolumeName { .. })), "{bad}");
            assert!(volumes.remove(bad).is_err(), "{bad}");
        }
    }

    fn made_path(volumes: &Volumes) -> PathBuf {
        volumes.find("db").unwrap().mountpoint
    }
}
