//! Shims that containerd lost: it starts one for `Tasks.Create`, and forgets it if the caller dies at that moment and its own
//! clean-up runs out of time. Nobody else would ever end them.

use super::client::{CALL_LIMIT, Client};
use super::config::ContainerdConfig;
use crate::error::ExecError;
use containerd_client::services::v1::ListContainersRequest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After the start come the two looks that mend what a crash left, later ones are for containerd's own accidents.
const LOOKS: [Duration; 3] = [Duration::from_millis(500), Duration::from_millis(1500), Duration::from_secs(10)];
const LATER: Duration = Duration::from_secs(60);
/// A container that is being removed goes before its shim; one that is still there after this is lost.
const CONFIRM: Duration = Duration::from_millis(1500);

/// A shim by its process and the container it was started for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shim {
    pid: i32,
    container: String,
}

/// Looks for lost shims until `stop`. A container's record is made before its shim and removed after it, so that a shim without a
/// record, seen twice, belongs to nobody.
pub async fn keep_clear(client: Client, config: ContainerdConfig, stop: CancellationToken) {
    let mut pauses = LOOKS.into_iter();
    let mut suspects = HashSet::new();
    loop {
        let pause = if suspects.is_empty() { pauses.next().unwrap_or(LATER) } else { CONFIRM };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        // containerd may be away; the next look is soon enough.
        let Ok(lost) = lost_shims(&client, &config).await else { continue };
        for shim in lost.intersection(&suspects) {
            tracing::warn!(task = %shim.container, pid = shim.pid, "ending a shim that containerd lost");
            end(shim, &config.cgroup_parent);
        }
        suspects = lost;
    }
}

async fn lost_shims(client: &Client, config: &ContainerdConfig) -> Result<HashSet<Shim>, ExecError> {
    let shims = shims_of(Path::new("/proc"), &config.socket, client.namespace());
    if shims.is_empty() {
        return Ok(HashSet::new());
    }
    // Whoever made it: several skepd may share a containerd.
    let request = client.request(ListContainersRequest::default());
    let list = client.call("list containers", CALL_LIMIT, async {
        let mut stream = client.containers().list_stream(request).await?.into_inner();
        let mut ids = HashSet::new();
        while let Some(message) = stream.message().await? {
            ids.extend(message.container.map(|container| container.id));
        }
        Ok(tonic::Response::new(ids))
    });
    let known: HashSet<String> = list.await.map_err(|error| client.explain(error))?;
    Ok(shims.into_iter().filter(|shim| !known.contains(&shim.container)).collect())
}

/// The shims that were started for one namespace of one containerd.
fn shims_of(proc: &Path, socket: &Path, namespace: &str) -> Vec<Shim> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let line = fs::read(proc.join(pid.to_string()).join("cmdline")).ok()?;
        let container = container_of(&line, socket, namespace)?;
        Some(Shim { pid, container })
    })
    .collect()
}

/// The container of a shim's command line, `containerd-shim-… -namespace N -id ID -address SOCKET`; `None` if it is no shim of ours.
fn container_of(line: &[u8], socket: &Path, namespace: &str) -> Option<String> {
    let words: Vec<&str> = line.split(|byte| *byte == 0).map(|word| std::str::from_utf8(word).unwrap_or_default()).collect();
    let program = Path::new(words.first()?).file_name()?.to_str()?;
    let value = |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1).copied());
    let ours = program.starts_with("containerd-shim") && value("-namespace") == Some(namespace) && Path::new(value("-address")?) == socket;
    ours.then(|| value("-id").map(str::to_owned)).flatten()
}

/// Processes of the container first: nobody would reap them after the shim. Each step may find its work done.
fn end(shim: &Shim, cgroup_parent: &str) {
    // An id is a single name; one that is not would lead out of our cgroup.
    if shim.container.contains('/') || shim.container.starts_with('.') {
        return;
    }
    let groups = cgroups(Path::new("/sys/fs/cgroup"), cgroup_parent, &shim.container);
    for group in &groups {
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|line| line.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let _ = kill(Pid::from_raw(shim.pid), Signal::SIGKILL);
    for group in groups {
        let _ = fs::remove_dir(group);
    }
}

/// A container's cgroup in the unified hierarchy and in each of version 1.
fn cgroups(root: &Path, parent: &str, container: &str) -> Vec<PathBuf> {
    let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let hierarchies = std::iter::once(root.to_owned()).chain(below);
    hierarchies.map(|hierarchy| hierarchy.join(parent.trim_start_matches('/')).join(container)).filter(|group| group.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shims_of_this_namespace_and_socket_are_ours() {
        let line = |program: &str, namespace: &str, socket: &str| {
            format!("{program}\0-namespace\0{namespace}\0-id\0abc\0-address\0{socket}\0").into_bytes()
        };
        let found = |line: Vec<u8>| container_of(&line, Path::new("/run/c.sock"), "skep");
        assert_eq!(found(line("/usr/bin/containerd-shim-runc-v2", "skep", "/run/c.sock")), Some("abc".into()));
        assert_eq!(found(line("/usr/bin/containerd-shim-runc-v2", "moby", "/run/c.sock")), None);
        assert_eq!(found(line("/usr/bin/containerd-shim-runc-v2", "skep", "/run/other.sock")), None);
        assert_eq!(found(line("/usr/bin/vi", "skep", "/run/c.sock")), None);
        assert_eq!(found(b"containerd-shim-runc-v2\0-id".to_vec()), None);
        assert_eq!(found(Vec::new()), None);
    }

    #[test]
    fn processes_are_read_from_proc() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, line) in [("17", "containerd-shim-runc-v2\0-namespace\0skep\0-id\0x\0-address\0/s\0"), ("18", "sh\0"), ("self", "sh\0")] {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("cmdline"), line).unwrap();
        }
        assert_eq!(shims_of(proc.path(), Path::new("/s"), "skep"), [Shim { pid: 17, container: "x".into() }]);
    }
}
