//! The OCI runtime specification of a task's container: a pure function of the task, its image and what was made for it.
//!
//! Defaults are Docker's (capabilities, seccomp, masked and read-only paths, mounts), with one exception: processes never
//! gain privileges by executing a file (`no_new_privileges` is always on).

mod process; // command, environment, user, capabilities, limits of the process
mod resources; // cgroup limits
pub mod seccomp; // Docker's profile form

pub use process::{capabilities, exec_process, exec_program};
#[cfg(test)]
use process::{command, environment};
pub use resources::limits;

use super::init;
use crate::error::ExecError;
use crate::executor::ImageConfig;
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Root, RootBuilder, Spec, SpecBuilder,
};
use skep_types::{ContainerSpec, GenericResource, ResourceRequirements, Seccomp};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What the kernel and machine allow; found out once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// As images say: `amd64`, `arm64`.
    pub architecture: String,
    /// Major and minor number of the kernel.
    pub kernel: (u32, u32),
    pub cgroup_v2: bool,
    /// Whether the kernel counts swap per container.
    pub swap_accounting: bool,
}

/// Who a process runs as, found in the image's files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserIds {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Home directory; empty if the user is in no file.
    pub home: String,
}

/// A mount whose source exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyMount {
    pub target: String,
    pub kind: &'static str,
    pub source: PathBuf,
    pub options: Vec<String>,
}

/// Everything a specification is made from.
#[derive(Debug)]
pub struct Input<'a> {
    /// With placeholders expanded.
    pub container: &'a ContainerSpec,
    pub resources: Option<&'a ResourceRequirements>,
    /// What the manager chose of the node's generic resources.
    pub individuals: &'a [GenericResource],
    /// The program that is to be process 1, on the host; `None` = the container's own.
    pub init: Option<&'a Path>,
    pub image: &'a ImageConfig,
    pub user: &'a UserIds,
    pub hostname: &'a str,
    /// Network namespace; `None` = the host's.
    pub namespace: Option<&'a Path>,
    /// `hosts`, `resolv.conf`, `hostname` on the host.
    pub etc: &'a Path,
    /// Binds, volumes, tmpfs, secrets and configs, ready to be mounted.
    pub mounts: &'a [ReadyMount],
    /// Of the container's cgroup, absolute within the hierarchy.
    pub cgroup: &'a str,
    pub host: &'a HostFacts,
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn mount(target: &str, kind: &str, source: impl Into<PathBuf>, options: Vec<String>) -> Mount {
    let mount = MountBuilder::default().destination(target).typ(kind).source(source.into()).options(options).build();
    mount.expect("every part of a mount is given")
}

/// The file systems of the kernel, as Docker mounts them.
fn system_mounts() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", words(&["nosuid", "noexec", "nodev"])),
        mount("/dev", "tmpfs", "tmpfs", words(&["nosuid", "strictatime", "mode=755", "size=65536k"])),
        mount("/dev/pts", "devpts", "devpts", words(&["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"])),
        mount("/sys", "sysfs", "sysfs", words(&["nosuid", "noexec", "nodev", "ro"])),
        // runc takes this type for cgroup v2 as well.
        mount("/sys/fs/cgroup", "cgroup", "cgroup", words(&["ro", "nosuid", "noexec", "nodev"])),
        mount("/dev/mqueue", "mqueue", "mqueue", words(&["nosuid", "noexec", "nodev"])),
        mount("/dev/shm", "tmpfs", "shm", words(&["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"])),
    ]
}

/// Paths that tell or change too much of the host (moby `oci/defaults.go`).
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn namespaces(input: &Input<'_>) -> Vec<LinuxNamespace> {
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind).build().expect("a namespace needs its type only");
    let mut list =
        vec![new(LinuxNamespaceType::Mount), new(LinuxNamespaceType::Uts), new(LinuxNamespaceType::Pid), new(LinuxNamespaceType::Ipc)];
    if let Some(path) = input.namespace {
        let network = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(path).build();
        list.push(network.expect("type and path are given"));
    }
    if input.host.cgroup_v2 {
        // As dockerd: private on v2, the host's on v1.
        list.push(new(LinuxNamespaceType::Cgroup));
    }
    list
}

/// Kernel settings of the container: the user's, over those dockerd gives containers with a network of their own.
fn sysctls(input: &Input<'_>) -> Result<HashMap<String, String>, ExecError> {
    let mut settings = HashMap::new();
    if input.namespace.is_some() {
        settings.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        settings.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    for (name, value) in &input.container.sysctls {
        if input.namespace.is_none() && name.starts_with("net.") {
            let problem = format!("{name} would change the host, as the service uses its network");
            return Err(ExecError::BadSpec { field: "sysctls", problem });
        }
        settings.insert(name.clone(), value.clone());
    }
    Ok(settings)
}

fn root(input: &Input<'_>) -> Root {
    RootBuilder::default().path("rootfs").readonly(input.container.read_only).build().expect("path and mode are given")
}

fn mounts(input: &Input<'_>) -> Vec<Mount> {
    let own: Vec<&str> = input.mounts.iter().map(|mount| mount.target.trim_end_matches('/')).collect();
    // What the user mounts takes the place of ours.
    let mut list: Vec<Mount> =
        system_mounts().into_iter().filter(|m| !own.iter().any(|target| Path::new(target) == m.destination().as_path())).collect();
    let mode = if input.container.read_only { "ro" } else { "rw" };
    for name in ["resolv.conf", "hostname", "hosts"] {
        let target = format!("/etc/{name}");
        if !own.contains(&target.as_str()) {
            list.push(mount(&target, "bind", input.etc.join(name), words(&["rbind", "rprivate", mode])));
        }
    }
    let init = input.init.map(|program| ReadyMount {
        target: init::TARGET.to_owned(),
        kind: "bind",
        source: program.to_path_buf(),
        options: words(&["bind", "rprivate", "ro", "nosuid", "nodev"]),
    });
    // Parents before what is mounted inside them.
    let mut ready: Vec<&ReadyMount> = input.mounts.iter().chain(&init).collect();
    ready.sort_by_key(|mount| Path::new(&mount.target).components().count());
    list.extend(ready.into_iter().map(|m| mount(&m.target, m.kind, m.source.clone(), m.options.clone())));
    list
}

/// The specification that runc gets.
///
/// # Errors
/// A setting that is wrong or not supported by this node, by name.
pub fn build(input: &Input<'_>) -> Result<Spec, ExecError> {
    refuse_unsupported(input.container)?;
    if input.init.is_some() && input.mounts.iter().any(|mount| Path::new(&mount.target) == Path::new(init::TARGET)) {
        let problem = format!("{} is where the init process is mounted (--init); choose another target", init::TARGET);
        return Err(ExecError::BadSpec { field: "mounts", problem });
    }
    let capabilities = capabilities(&input.container.capability_add, &input.container.capability_drop)?;
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(input)))
        .set_sysctl(Some(sysctls(input)?))
        .set_cgroups_path(Some(input.cgroup.into()))
        .set_resources(Some(limits(input.container, input.resources, input.host)?))
        .set_masked_paths(Some(words(MASKED)))
        .set_readonly_paths(Some(words(READ_ONLY)));
    let host = seccomp::Host { architecture: &input.host.architecture, kernel: input.host.kernel, capabilities: &capabilities };
    let wish = input.container.privileges.as_ref().and_then(|privileges| privileges.seccomp.as_ref());
    linux.set_seccomp(match wish {
        None | Some(Seccomp::Default) => Some(seccomp::default_profile(host)),
        Some(Seccomp::Unconfined) => None,
        Some(Seccomp::Custom(profile)) => {
            let bad = |problem| ExecError::BadSpec { field: "privileges.seccomp.profile", problem };
            Some(seccomp::parse(profile, host).map_err(bad)?)
        }
    });
    if input.mounts.iter().any(|mount| mount.options.iter().any(|option| option == "rshared" || option == "shared")) {
        linux.set_rootfs_propagation(Some("shared".into()));
    } else if input.mounts.iter().any(|mount| mount.options.iter().any(|option| option == "rslave" || option == "slave")) {
        linux.set_rootfs_propagation(Some("rslave".into()));
    }
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(root(input))
        .process(process::process(input, &capabilities)?)
        .hostname(input.hostname)
        .mounts(mounts(input))
        .linux(linux)
        .build();
    Ok(spec.expect("every required part is given"))
}

/// What this node cannot do is refused, never left out silently.
fn refuse_unsupported(container: &ContainerSpec) -> Result<(), ExecError> {
    let no = |what: &str, cure: &'static str| Err(ExecError::Unsupported { what: what.to_owned(), cure });
    if container.isolation == skep_types::Isolation::HyperV {
        return no("isolation hyperv", "; it exists on Windows only");
    }
    let Some(privileges) = &container.privileges else { return Ok(()) };
    if privileges.credential_spec.is_some() {
        return no("a credential spec", "; it exists on Windows only");
    }
    match &privileges.selinux {
        Some(selinux) if !selinux.disable => no("an SELinux context", "; this node does not label containers"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
