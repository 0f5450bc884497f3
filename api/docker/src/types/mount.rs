//! What a container has mounted.

use super::driver::Driver;
use super::value::{is_default, words};
use serde::{Deserialize, Serialize};
use skep_types::{BindOptions as BindWish, FieldError, Labels, Mount as MountWish};

words!(kind: skep_types::MountType { "bind" = Bind, "volume" = Volume, "tmpfs" = Tmpfs, "npipe" = NamedPipe, "cluster" = Cluster });
words!(propagation: skep_types::MountPropagation {
    "rprivate" = RPrivate,
    "private" = Private,
    "rshared" = RShared,
    "shared" = Shared,
    "rslave" = RSlave,
    "slave" = Slave,
});
words!(consistency: skep_types::MountConsistency {
    "default" = Default,
    "consistent" = Consistent,
    "cached" = Cached,
    "delegated" = Delegated,
});

/// A mount of a service's containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    #[serde(skip_serializing_if = "is_default")]
    pub r#type: String,
    #[serde(skip_serializing_if = "is_default")]
    pub source: String,
    #[serde(skip_serializing_if = "is_default")]
    pub target: String,
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub consistency: String,
    #[serde(skip_serializing_if = "is_default")]
    pub bind_options: Option<BindOptions>,
    #[serde(skip_serializing_if = "is_default")]
    pub volume_options: Option<VolumeOptions>,
    #[serde(skip_serializing_if = "is_default")]
    pub tmpfs_options: Option<TmpfsOptions>,
    #[serde(skip_serializing_if = "is_default")]
    pub image_options: Option<ImageOptions>,
    #[serde(skip_serializing_if = "is_default")]
    pub cluster_options: Option<ClusterOptions>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    #[serde(skip_serializing_if = "is_default")]
    pub propagation: String,
    #[serde(skip_serializing_if = "is_default")]
    pub non_recursive: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub create_mountpoint: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub read_only_non_recursive: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub read_only_force_recursive: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    #[serde(skip_serializing_if = "is_default")]
    pub no_copy: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub labels: Labels,
    #[serde(skip_serializing_if = "is_default")]
    pub subpath: String,
    #[serde(skip_serializing_if = "is_default")]
    pub driver_config: Option<Driver>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    #[serde(skip_serializing_if = "is_default")]
    pub size_bytes: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub mode: u32,
    /// Each is a word, or a name and a value.
    #[serde(skip_serializing_if = "is_default")]
    pub options: Vec<Vec<String>>,
}

/// Of mounts that the cluster does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageOptions {
    #[serde(skip_serializing_if = "is_default")]
    pub subpath: String,
}

/// Says nothing yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterOptions {}

impl TryFrom<Mount> for MountWish {
    type Error = FieldError;

    fn try_from(json: Mount) -> Result<Self, FieldError> {
        let Mount {
            r#type,
            source,
            target,
            read_only,
            consistency: hint,
            bind_options,
            volume_options,
            tmpfs_options,
            image_options,
            cluster_options: _,
        } = json;
        if r#type.eq_ignore_ascii_case("image") || image_options.is_some() {
            return Err(FieldError::new(
                "Type",
                "invalid MountType: \"image\": services cannot mount images; copy the files into a volume",
            ));
        }
        let kind = kind::from("Type", &r#type)
            .map_err(|error| FieldError { problem: format!("invalid MountType: {}", error.problem), ..error })?;
        Ok(Self {
            kind,
            source,
            target,
            read_only,
            consistency: consistency::from("Consistency", &hint)?,
            bind: bind_options.map(BindWish::try_from).transpose().map_err(|error| error.inside("BindOptions"))?,
            volume: volume_options.map(Into::into),
            tmpfs: tmpfs_options.map(TryInto::try_into).transpose().map_err(|error: FieldError| error.inside("TmpfsOptions"))?,
        })
    }
}

impl From<&MountWish> for Mount {
    fn from(wish: &MountWish) -> Self {
        let MountWish { kind, source, target, read_only, consistency: hint, bind, volume, tmpfs } = wish;
        Self {
            r#type: kind::to(*kind).to_owned(),
            source: source.clone(),
            target: target.clone(),
            read_only: *read_only,
            consistency: if is_default(hint) { String::new() } else { consistency::to(*hint).to_owned() },
            bind_options: bind.as_ref().map(Into::into),
            volume_options: volume.as_ref().map(Into::into),
            tmpfs_options: tmpfs.as_ref().map(Into::into),
            image_options: None,
            cluster_options: None,
        }
    }
}

impl TryFrom<BindOptions> for BindWish {
    type Error = FieldError;

    fn try_from(json: BindOptions) -> Result<Self, FieldError> {
        let BindOptions { propagation: word, non_recursive, create_mountpoint, read_only_non_recursive, read_only_force_recursive } = json;
        let propagation = propagation::from("Propagation", &word)?;
        Ok(Self { propagation, non_recursive, create_mountpoint, read_only_non_recursive, read_only_force_recursive })
    }
}

impl From<&BindWish> for BindOptions {
    fn from(wish: &BindWish) -> Self {
        let BindWish { propagation: way, non_recursive, create_mountpoint, read_only_non_recursive, read_only_force_recursive } = wish;
        Self {
            propagation: propagation::to(*way).to_owned(),
            non_recursive: *non_recursive,
            create_mountpoint: *create_mountpoint,
            read_only_non_recursive: *read_only_non_recursive,
            read_only_force_recursive: *read_only_force_recursive,
        }
    }
}

impl From<VolumeOptions> for skep_types::VolumeOptions {
    fn from(json: VolumeOptions) -> Self {
        let VolumeOptions { no_copy, labels, subpath, driver_config } = json;
        Self { no_copy, labels, driver: driver_config.map(Into::into), subpath }
    }
}

impl From<&skep_types::VolumeOptions> for VolumeOptions {
    fn from(wish: &skep_types::VolumeOptions) -> Self {
        let skep_types::VolumeOptions { no_copy, labels, driver, subpath } = wish;
        Self { no_copy: *no_copy, labels: labels.clone(), subpath: subpath.clone(), driver_config: driver.as_ref().map(Into::into) }
    }
}

impl TryFrom<TmpfsOptions> for skep_types::TmpfsOptions {
    type Error = FieldError;

    fn try_from(json: TmpfsOptions) -> Result<Self, FieldError> {
        let TmpfsOptions { size_bytes, mode, options } = json;
        let options = options.iter().enumerate().map(|(index, option)| {
            let refuse = |problem: &str| FieldError::new("", problem).at(index).inside("Options");
            let text = match option.as_slice() {
                [word] | [word, _] if word.is_empty() => return Err(refuse("is empty")),
                [word] | [word, _] if word.contains('=') => return Err(refuse("has '=' in its name; give name and value as two texts")),
                [word] => word.clone(),
                [name, value] => format!("{name}={value}"),
                _ => return Err(refuse("must be a word, or a name and a value")),
            };
            if text.contains(',') { Err(refuse("contains a comma, which ends an option")) } else { Ok(text) }
        });
        let options = options.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { size_bytes, mode, options: options.join(",") })
    }
}

impl From<&skep_types::TmpfsOptions> for TmpfsOptions {
    fn from(wish: &skep_types::TmpfsOptions) -> Self {
        let skep_types::TmpfsOptions { size_bytes, mode, options } = wish;
        let parts = |option: &str| match option.split_once('=') {
            Some((name, value)) => vec![name.to_owned(), value.to_owned()],
            None => vec![option.to_owned()],
        };
        Self { size_bytes: *size_bytes, mode: *mode, options: options.split(',').filter(|option| !option.is_empty()).map(parts).collect() }
    }
}
