//! `--mount type=…,source=…,target=…`.

use super::values::{boolean, bytes, fields, pair};
use skep_types::{BindOptions, Driver, Mount, MountConsistency, MountPropagation, MountType, TmpfsOptions, VolumeOptions};

/// One mount in the long form; the type is `volume` when not given, as in Docker.
pub fn mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount { kind: MountType::Volume, ..Mount::default() };
    let mut bind: Option<BindOptions> = None;
    let mut volume: Option<VolumeOptions> = None;
    let mut tmpfs: Option<TmpfsOptions> = None;
    for (key, value) in fields(text)? {
        match key.as_str() {
            "type" => {
                mount.kind = match value.as_str() {
                    "bind" => MountType::Bind,
                    "volume" => MountType::Volume,
                    "tmpfs" => MountType::Tmpfs,
                    "cluster" => MountType::Cluster,
                    other => return Err(format!("mount type {other:?} is not known; use bind, volume or tmpfs")),
                }
            }
            "source" | "src" => mount.source = value,
            "target" | "dst" | "destination" => mount.target = value,
            "readonly" | "ro" => mount.read_only = boolean(&key, &value)?,
            "consistency" => {
                mount.consistency = match value.as_str() {
                    "default" => MountConsistency::Default,
                    "consistent" => MountConsistency::Consistent,
                    "cached" => MountConsistency::Cached,
                    "delegated" => MountConsistency::Delegated,
                    other => return Err(format!("consistency {other:?} is not known")),
                }
            }
            "bind-propagation" => bind.get_or_insert_default().propagation = propagation(&value)?,
            "bind-nonrecursive" => bind.get_or_insert_default().non_recursive = boolean(&key, &value)?,
            "bind-create-mountpoint" => bind.get_or_insert_default().create_mountpoint = boolean(&key, &value)?,
            "bind-recursive" => recursive(bind.get_or_insert_default(), &value)?,
            "volume-nocopy" => volume.get_or_insert_default().no_copy = boolean(&key, &value)?,
            "volume-label" => volume.get_or_insert_default().labels.extend([pair(&value)?]),
            "volume-driver" => volume.get_or_insert_default().driver.get_or_insert_with(Driver::default).name = value,
            "volume-opt" => volume.get_or_insert_default().driver.get_or_insert_with(Driver::default).options.extend([pair(&value)?]),
            "volume-subpath" => volume.get_or_insert_default().subpath = value,
            "tmpfs-size" => tmpfs.get_or_insert_default().size_bytes = bytes(&value)?,
            "tmpfs-mode" => {
                tmpfs.get_or_insert_default().mode = u32::from_str_radix(&value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| format!("tmpfs-mode={value}: write octal permissions such as 1770"))?;
            }
            other => return Err(format!("mount option {other:?} is not known")),
        }
    }
    if mount.target.is_empty() {
        return Err(format!("mount {text:?} has no target; add target=/path/in/container"));
    }
    let wants = |name: &str, kind: MountType| {
        if mount.kind == kind { Ok(()) } else { Err(format!("{name}-… options need type={name}")) }
    };
    if bind.is_some() {
        wants("bind", MountType::Bind)?;
    }
    if volume.is_some() {
        wants("volume", MountType::Volume)?;
    }
    if tmpfs.is_some() {
        wants("tmpfs", MountType::Tmpfs)?;
    }
    if mount.kind == MountType::Bind {
        if mount.source.is_empty() {
            return Err(format!("mount {text:?} has no source; add source=/path/on/the/node"));
        }
        if mount.source.starts_with('.') {
            let absolute = std::path::absolute(&mount.source).map_err(|error| format!("mount source {}: {error}", mount.source))?;
            mount.source = absolute.to_string_lossy().into_owned();
        }
    }
    Ok(Mount { bind, volume, tmpfs, ..mount })
}

fn propagation(text: &str) -> Result<MountPropagation, String> {
    Ok(match text {
        "rprivate" => MountPropagation::RPrivate,
        "private" => MountPropagation::Private,
        "rshared" => MountPropagation::RShared,
        "shared" => MountPropagation::Shared,
        "rslave" => MountPropagation::RSlave,
        "slave" => MountPropagation::Slave,
        other => return Err(format!("bind-propagation {other:?} is not known")),
    })
}

fn recursive(bind: &mut BindOptions, value: &str) -> Result<(), String> {
    match value {
        "enabled" => {}
        "disabled" => bind.non_recursive = true,
        "writable" => bind.read_only_non_recursive = true,
        "readonly" => bind.read_only_force_recursive = true,
        other => return Err(format!("bind-recursive {other:?} is not known; use enabled, disabled, writable or readonly")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_types_are_read() {
        let bind = mount("type=bind,src=/etc,dst=/host,ro,bind-propagation=rslave").unwrap();
        assert_eq!((bind.kind, bind.read_only, bind.bind.unwrap().propagation), (MountType::Bind, true, MountPropagation::RSlave));
        let volume = mount("source=data,target=/data,volume-nocopy,volume-label=a=b").unwrap();
        assert_eq!(volume.volume.unwrap().labels["a"], "b");
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap().tmpfs.unwrap();
        assert_eq!((tmpfs.size_bytes, tmpfs.mode), (1 << 20, 0o1770));
    }

    #[test]
    fn contradictions_are_refused() {
        for wrong in [
            "type=bind,target=/x",
            "type=tmpfs",
            "type=tmpfs,target=/x,volume-nocopy",
            "target=/x,oops=1",
            "type=npipe,target=/x",
            "type=tmpfs,target=/x,tmpfs-mode=999",
        ] {
            assert!(mount(wrong).is_err(), "{wrong}");
        }
    }
}
