//! What is mounted: `Mounts` as services have them, and the older `Binds`, `Volumes`, `Tmpfs`, `ShmSize`.

use crate::ApiError;
use crate::types::create::CreateBody;
use skep_types::{BindOptions, Mount, MountPropagation, MountType, TmpfsOptions, VolumeOptions};

/// As every container has it (moby `opts`).
const SHM_SIZE: i64 = 64 << 20;

fn bad(text: &str) -> ApiError {
    ApiError::invalid(format!("invalid volume specification: '{text}'"))
}

/// `source:target[:options]`, or a target alone.
fn bind(text: &str) -> Result<Mount, ApiError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(bad(text)),
    };
    if !target.starts_with('/') || (parts.len() > 1 && source.is_empty()) {
        return Err(bad(text));
    }
    let is_bind = source.starts_with('/');
    let (mut propagation, mut read_only, mut no_copy) = (MountPropagation::default(), false, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "nocopy" if !is_bind => no_copy = true,
            "rprivate" => propagation = MountPropagation::RPrivate,
            "private" => propagation = MountPropagation::Private,
            "rshared" => propagation = MountPropagation::RShared,
            "shared" => propagation = MountPropagation::Shared,
            "rslave" => propagation = MountPropagation::RSlave,
            "slave" => propagation = MountPropagation::Slave,
            other => {
                return Err(ApiError::unimplemented(format!(
                    "HostConfig.Binds: option {other:?} of '{text}' is not supported by this node; there are ro, rw, nocopy and propagations"
                )));
            }
        }
    }
    let bind = is_bind.then(|| BindOptions { propagation, create_mountpoint: true, ..BindOptions::default() });
    let volume = (!is_bind).then(|| VolumeOptions { no_copy, ..VolumeOptions::default() });
    let kind = if is_bind { MountType::Bind } else { MountType::Volume };
    Ok(Mount { kind, source: source.to_owned(), target: target.to_owned(), read_only, bind, volume, ..Mount::default() })
}

pub(super) fn mounts(body: &CreateBody) -> Result<Vec<Mount>, ApiError> {
    let host = &body.host_config;
    let mut list = host.binds.iter().map(|text| bind(text)).collect::<Result<Vec<Mount>, ApiError>>()?;
    for (index, mount) in host.mounts.iter().enumerate() {
        let made: Result<Mount, skep_types::FieldError> = mount.clone().try_into();
        list.push(made.map_err(|error| ApiError::invalid(error.at(index).inside("HostConfig.Mounts").to_string()))?);
    }
    for (target, options) in &host.tmpfs {
        let tmpfs = Some(TmpfsOptions { options: options.clone(), ..TmpfsOptions::default() });
        list.push(Mount { kind: MountType::Tmpfs, target: target.clone(), tmpfs, ..Mount::default() });
    }
    if host.shm_size < 0 {
        return Err(ApiError::invalid("SHM size can not be less than 0"));
    }
    if !matches!(host.shm_size, 0 | SHM_SIZE) {
        let tmpfs = Some(TmpfsOptions { size_bytes: host.shm_size, ..TmpfsOptions::default() });
        list.push(Mount { kind: MountType::Tmpfs, target: "/dev/shm".into(), tmpfs, ..Mount::default() });
    }
    // A place that something is mounted at needs no volume without a name.
    for target in body.volumes.keys() {
        let at = bind(target)?;
        if !list.iter().any(|mount| mount.target.trim_end_matches('/') == at.target.trim_end_matches('/')) {
            list.push(at);
        }
    }
    for (index, mount) in list.iter().enumerate() {
        if list[..index].iter().any(|other| other.target == mount.target) {
            return Err(ApiError::invalid(format!("Duplicate mount point: {}", mount.target)));
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_directories_of_the_host_or_volumes() {
        let host = bind("/a:/b:ro,rshared").unwrap();
        assert_eq!((host.kind, host.source.as_str(), host.target.as_str(), host.read_only), (MountType::Bind, "/a", "/b", true));
        let options = host.bind.unwrap();
        assert!(options.create_mountpoint && options.propagation == MountPropagation::RShared);
        let volume = bind("data:/b:nocopy").unwrap();
        assert!(volume.kind == MountType::Volume && volume.source == "data" && volume.volume.unwrap().no_copy);
        assert_eq!(bind("/b").unwrap().source, "");
        for bad in ["", "a:b", ":/b", "/a:/b:rw:x", "b"] {
            assert_eq!(bind(bad).unwrap_err().status(), 400, "{bad}");
        }
        assert_eq!(bind("/a:/b:z").unwrap_err().status(), 501);
    }
}
