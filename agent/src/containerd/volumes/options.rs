//! Options of the volume driver `local`, in dockerd's words (`type`, `device`, `o`): which mount(2) they ask for. Pure.

use nix::mount::MsFlags;
use skep_types::Labels;
use std::io;
use std::net::IpAddr;

/// Whose servers are named in their options, by an address: the kernel looks up no names.
const NETWORK_TYPES: [&str; 4] = ["nfs", "nfs4", "cifs", "smb3"];

/// What mount(2) is to be called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountCall {
    /// File system; `none` for a bind mount.
    pub kind: String,
    pub device: String,
    pub flags: MsFlags,
    /// Asked for by a call of its own; empty = as the host has it.
    pub propagation: MsFlags,
    /// For the file system itself. May hold passwords: never to be shown.
    pub data: Vec<String>,
}

/// Options that ask for nothing that can be mounted.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    #[error("volume option {name:?} is not known; the driver local has type, device and o")]
    Unknown { name: String },
    #[error("volume option size is not supported; for a tmpfs, write it into o: type=tmpfs, device=tmpfs, o=size=…")]
    Size,
    #[error("volume option {given} wants {missing} as well")]
    Missing { given: &'static str, missing: &'static str },
    #[error("volume option {name}: holds a control character")]
    ControlCharacter { name: String },
    #[error("volume option {place} names the server {host:?}, which this node cannot resolve")]
    NoSuchHost { place: &'static str, host: String, source: io::Error },
}

/// Refuses what dockerd's driver refuses, and a size, for which it would need quotas of the disk.
///
/// # Errors
/// Names the option.
pub fn check(options: &Labels) -> Result<(), OptionError> {
    for (name, value) in options {
        match name.as_str() {
            "type" | "device" | "o" => {}
            "size" => return Err(OptionError::Size),
            _ => return Err(OptionError::Unknown { name: name.clone() }),
        }
        if value.chars().any(char::is_control) {
            return Err(OptionError::ControlCharacter { name: name.clone() });
        }
    }
    let has = |name: &str| options.get(name).is_some_and(|value| !value.is_empty());
    for (given, missing) in [("type", "device"), ("device", "type"), ("o", "type"), ("o", "device")] {
        if options.contains_key(given) && !has(missing) {
            return Err(OptionError::Missing { given, missing });
        }
    }
    Ok(())
}

/// The call that the options ask for; `resolve` finds the address of a server.
///
/// As dockerd's driver, a name in `addr=` is replaced by its address. Without `addr=` the server is read off the device, as mount.nfs and
/// mount.cifs do, which are not needed here.
///
/// # Errors
/// See [`check`]; a server that cannot be resolved.
pub fn call(options: &Labels, resolve: impl Fn(&str) -> io::Result<IpAddr>) -> Result<MountCall, OptionError> {
    check(options)?;
    let get = |name: &str| options.get(name).cloned().unwrap_or_default();
    let mut call =
        MountCall { kind: get("type"), device: get("device"), flags: MsFlags::empty(), propagation: MsFlags::empty(), data: Vec::new() };
    for option in get("o").split(',').filter(|option| !option.is_empty()) {
        match meaning(option) {
            Some(Meaning::Set(flag)) => call.flags |= flag,
            Some(Meaning::Clear(flag)) => call.flags &= !flag,
            Some(Meaning::Propagation(flag)) => call.propagation = flag,
            None => call.data.push(option.to_owned()),
        }
    }
    if NETWORK_TYPES.contains(&call.kind.as_str()) {
        give_address(&mut call, resolve)?;
    }
    Ok(call)
}

fn give_address(call: &mut MountCall, resolve: impl Fn(&str) -> io::Result<IpAddr>) -> Result<(), OptionError> {
    let address = |place, host: &str| match host.parse::<IpAddr>() {
        Ok(address) => Ok(address),
        Err(_) => resolve(host).map_err(|source| OptionError::NoSuchHost { place, host: host.to_owned(), source }),
    };
    // `ip` is cifs' other word for it.
    for option in &mut call.data {
        if let Some((name @ ("addr" | "ip"), host)) = option.split_once('=') {
            *option = format!("{name}={}", address("o", host)?);
            return Ok(());
        }
    }
    if let Some(host) = server_of(&call.device) {
        let found = address("device", host)?;
        call.data.push(format!("addr={found}"));
    }
    Ok(())
}

/// `nas` of `nas:/export`, `[fd00::1]:/export` and `//nas/share`.
fn server_of(device: &str) -> Option<&str> {
    let host = match device.strip_prefix("//") {
        Some(share) => share.split('/').next()?,
        None => device.split_once(":/")?.0,
    };
    let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

enum Meaning {
    Set(MsFlags),
    Clear(MsFlags),
    Propagation(MsFlags),
}

/// Of mount(8)'s words, what is a flag of the call and not for the file system.
fn meaning(option: &str) -> Option<Meaning> {
    use Meaning::{Clear, Propagation, Set};
    Some(match option {
        "defaults" => Set(MsFlags::empty()),
        "bind" => Set(MsFlags::MS_BIND),
        "rbind" => Set(MsFlags::MS_BIND | MsFlags::MS_REC),
        "ro" => Set(MsFlags::MS_RDONLY),
        "rw" => Clear(MsFlags::MS_RDONLY),
        "nosuid" => Set(MsFlags::MS_NOSUID),
        "suid" => Clear(MsFlags::MS_NOSUID),
        "nodev" => Set(MsFlags::MS_NODEV),
        "dev" => Clear(MsFlags::MS_NODEV),
        "noexec" => Set(MsFlags::MS_NOEXEC),
        "exec" => Clear(MsFlags::MS_NOEXEC),
        "sync" => Set(MsFlags::MS_SYNCHRONOUS),
        "async" => Clear(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => Set(MsFlags::MS_DIRSYNC),
        "mand" => Set(MsFlags::MS_MANDLOCK),
        "nomand" => Clear(MsFlags::MS_MANDLOCK),
        "noatime" => Set(MsFlags::MS_NOATIME),
        "atime" => Clear(MsFlags::MS_NOATIME),
        "nodiratime" => Set(MsFlags::MS_NODIRATIME),
        "diratime" => Clear(MsFlags::MS_NODIRATIME),
        "relatime" => Set(MsFlags::MS_RELATIME),
        "norelatime" => Clear(MsFlags::MS_RELATIME),
        "strictatime" => Set(MsFlags::MS_STRICTATIME),
        "nostrictatime" => Clear(MsFlags::MS_STRICTATIME),
        "private" => Propagation(MsFlags::MS_PRIVATE),
        "rprivate" => Propagation(MsFlags::MS_PRIVATE | MsFlags::MS_REC),
        "shared" => Propagation(MsFlags::MS_SHARED),
        "rshared" => Propagation(MsFlags::MS_SHARED | MsFlags::MS_REC),
        "slave" => Propagation(MsFlags::MS_SLAVE),
        "rslave" => Propagation(MsFlags::MS_SLAVE | MsFlags::MS_REC),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn resolver(host: &str) -> io::Result<IpAddr> {
        match host {
            "nas" => Ok("192.0.2.7".parse().unwrap()),
            "nas6" => Ok("2001:db8::7".parse().unwrap()),
            _ => Err(io::Error::other("no such name")),
        }
    }

    fn asked(pairs: &[(&str, &str)]) -> Result<MountCall, OptionError> {
        call(&options(pairs), resolver)
    }

    #[test]
    fn words_of_mount_become_flags_and_the_rest_is_for_the_file_system() {
        let found = asked(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,uid=5,noexec,ro,rw,,nosuid")]).unwrap();
        assert_eq!(found.flags, MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID);
        assert_eq!((found.kind.as_str(), found.device.as_str(), found.data), ("tmpfs", "tmpfs", vec!["size=1m".into(), "uid=5".into()]));
        let found = asked(&[("type", "none"), ("device", "/srv"), ("o", "rbind,ro,rslave")]).unwrap();
        assert_eq!(found.flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!((found.propagation, found.data), (MsFlags::MS_SLAVE | MsFlags::MS_REC, vec![]));
    }

    #[test]
    fn the_server_of_a_network_file_system_is_given_by_its_address() {
        for (kind, device, o, data) in [
            ("nfs", ":/export", "addr=nas,rw,nolock", vec!["addr=192.0.2.7", "nolock"]),
            ("nfs", ":/export", "addr=192.0.2.9,vers=4", vec!["addr=192.0.2.9", "vers=4"]),
            ("nfs4", "nas6:/export", "soft", vec!["soft", "addr=2001:db8::7"]),
            ("nfs", "[2001:db8::9]:/export", "soft", vec!["soft", "addr=2001:db8::9"]),
            ("cifs", "//nas/share", "username=me,password=secret", vec!["username=me", "password=secret", "addr=192.0.2.7"]),
            ("cifs", "//server/share", "ip=nas", vec!["ip=192.0.2.7"]),
            ("ext4", "/dev/nas:/x", "addr=nas", vec!["addr=nas"]),
        ] {
            let found = asked(&[("type", kind), ("device", device), ("o", o)]).unwrap();
            assert_eq!((found.device.as_str(), found.data), (device, data.into_iter().map(str::to_owned).collect()), "{kind} {o}");
        }
        let lost = asked(&[("type", "nfs"), ("device", "gone:/export"), ("o", "soft")]).unwrap_err().to_string();
        assert_eq!(lost, "volume option device names the server \"gone\", which this node cannot resolve");
    }

    #[test]
    fn options_that_cannot_be_mounted_are_named() {
        for (pairs, words) in [
            (&[("typ", "nfs")][..], "\"typ\" is not known"),
            (&[("type", "nfs")], "type wants device"),
            (&[("device", "/x")], "device wants type"),
            (&[("o", "bind")], "o wants type"),
            (&[("type", ""), ("device", "/x")], "device wants type"),
            (&[("size", "1m")], "o=size="),
            (&[("type", "a\nb"), ("device", "/x")], "type: holds a control character"),
        ] {
            let error = asked(pairs).unwrap_err().to_string();
            assert!(error.contains(words), "{pairs:?}: {error}");
        }
    }
}
