//! The process of a container: command, environment, user, capabilities, limits.

use super::{Input, UserIds, init};
use crate::containerd::Program;
use crate::error::ExecError;
use crate::executor::ImageConfig;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User};
use skep_types::{ContainerSpec, GenericResource, Ulimit};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container may do by default (moby `oci/caps/defaults.go`).
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// All that Linux 6.1 knows; what `ALL` stands for.
const ALL: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// The capabilities of a container, as `CAP_…`, sorted.
///
/// # Errors
/// Naming the one that does not exist.
pub fn capabilities(add: &[String], drop: &[String]) -> Result<Vec<String>, ExecError> {
    let parse = |field: &'static str, list: &[String]| -> Result<(bool, BTreeSet<&'static str>), ExecError> {
        let mut all = false;
        let mut names = BTreeSet::new();
        for given in list {
            let upper = given.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if name == "ALL" {
                all = true;
                continue;
            }
            match ALL.iter().find(|known| **known == name) {
                Some(known) => names.insert(*known),
                None => return Err(ExecError::BadSpec { field, problem: format!("there is no capability {given:?}") }),
            };
        }
        Ok((all, names))
    };
    let (add_all, added) = parse("capability_add", add)?;
    let (drop_all, dropped) = parse("capability_drop", drop)?;
    // As dockerd: `drop ALL` first takes everything away, `add` then wins over the default, and `drop` over `add ALL`.
    let base: &[&str] = match (add_all, drop_all) {
        (true, _) => ALL,
        (false, true) => &[],
        (false, false) => CAPABILITIES,
    };
    let mut held: BTreeSet<&str> = base.iter().copied().filter(|name| !dropped.contains(name)).collect();
    held.extend(added);
    Ok(held.into_iter().map(|name| format!("CAP_{name}")).collect())
}

fn capability_sets(names: &[String]) -> LinuxCapabilities {
    let set: Capabilities = names
        .iter()
        .map(|name| Capability::from_str(name.trim_start_matches("CAP_")).expect("only capabilities that are in ALL"))
        .collect();
    let mut sets = LinuxCapabilities::default();
    // No inheritable and no ambient ones: CVE-2022-24769.
    sets.set_bounding(Some(set.clone())).set_permitted(Some(set.clone())).set_effective(Some(set));
    sets.set_inheritable(None).set_ambient(None);
    sets
}

/// The command line: `command` replaces the image's entrypoint and command; `args` alone replaces its command only.
///
/// # Errors
/// If there is none.
pub fn command(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, ExecError> {
    let parts: [&[String]; 2] = if !spec.command.is_empty() {
        [&spec.command, &spec.args]
    } else if !spec.args.is_empty() {
        [&image.entrypoint, &spec.args]
    } else {
        [&image.entrypoint, &image.command]
    };
    let line = parts.concat();
    if line.first().is_none_or(String::is_empty) { Err(ExecError::NoCommand) } else { Ok(line) }
}

/// `DOCKER_RESOURCE_<KIND>` for each kind: the individuals, or how many (wire-behaviour 25).
#[must_use]
pub fn individuals(assigned: &[GenericResource]) -> Vec<String> {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for resource in assigned {
        let (kind, value) = match resource {
            GenericResource::Named { kind, value } => (kind, value.clone()),
            GenericResource::Discrete { kind, value } => (kind, value.to_string()),
        };
        kinds.entry(kind.to_uppercase()).or_default().push(value);
    }
    kinds.into_iter().map(|(kind, values)| format!("DOCKER_RESOURCE_{kind}={}", values.join(","))).collect()
}

/// Docker's own variables, then the image's, the assigned resources, the service's; later ones win, a bare `NAME` removes.
#[must_use]
pub fn environment(spec: &ContainerSpec, image: &ImageConfig, assigned: &[GenericResource], hostname: &str, home: &str) -> Vec<String> {
    let mut list: Vec<String> = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if spec.tty {
        list.push("TERM=xterm".into());
    }
    if !home.is_empty() {
        list.push(format!("HOME={home}"));
    }
    for entry in image.env.iter().chain(&individuals(assigned)).chain(&spec.env) {
        let name = entry.split('=').next().unwrap_or_default();
        let same = |known: &String| known.split('=').next() == Some(name);
        if !entry.contains('=') {
            list.retain(|known| !same(known));
        } else if let Some(known) = list.iter_mut().find(|known| same(known)) {
            known.clone_from(entry);
        } else {
            list.push(entry.clone());
        }
    }
    list
}

fn limit(given: &Ulimit) -> Result<PosixRlimit, ExecError> {
    let bad = |problem: String| ExecError::BadSpec { field: "ulimits", problem };
    let name = given.name.to_ascii_uppercase();
    let name = if name.starts_with("RLIMIT_") { name } else { format!("RLIMIT_{name}") };
    let kind = PosixRlimitType::from_str(&name).map_err(|_| bad(format!("there is no limit {:?}", given.name)))?;
    let amount = |value: i64| match value {
        -1 => Ok(u64::MAX),
        value => u64::try_from(value).map_err(|_| bad(format!("{} cannot be {value}; -1 means no limit", given.name))),
    };
    let (soft, hard) = (amount(given.soft)?, amount(given.hard)?);
    if soft > hard {
        return Err(bad(format!("{}: the soft limit {} is above the hard limit {}", given.name, given.soft, given.hard)));
    }
    Ok(PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build().expect("all parts are given"))
}

fn user(input: &Input<'_>) -> User {
    let mut user = User::default();
    user.set_uid(input.user.uid).set_gid(input.user.gid);
    if !input.user.groups.is_empty() {
        user.set_additional_gids(Some(input.user.groups.clone()));
    }
    user
}

/// Whether a path is in /proc, `..` and `.` taken away.
fn reaches_proc(dir: &str) -> bool {
    let mut parts = Vec::new();
    for part in dir.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.first() == Some(&"proc")
}

fn check_dir(dir: &str) -> Result<(), ExecError> {
    if !dir.starts_with('/') {
        return Err(ExecError::BadWorkingDir { dir: dir.to_owned(), reason: "it must begin with /".into() });
    }
    // Leads to descriptors of runc and so to the host's files (CVE-2024-21626).
    if reaches_proc(dir) {
        return Err(ExecError::BadWorkingDir { dir: dir.to_owned(), reason: "it must not be in /proc".into() });
    }
    Ok(())
}

pub(super) fn process(input: &Input<'_>, capabilities: &[String]) -> Result<Process, ExecError> {
    let container = input.container;
    let mut process = Process::default();
    let dir = [&container.dir, &input.image.working_dir].into_iter().find(|dir| !dir.is_empty());
    let dir = dir.map_or("/", String::as_str);
    check_dir(dir)?;
    let mut args = command(container, input.image)?;
    if input.init.is_some() {
        args.splice(..0, [init::TARGET.to_owned(), "--".to_owned()]);
    }
    let limits = container.ulimits.iter().map(limit).collect::<Result<Vec<_>, _>>()?;
    process
        .set_terminal(Some(container.tty))
        .set_user(user(input))
        .set_args(Some(args))
        .set_env(Some(environment(container, input.image, input.individuals, input.hostname, &input.user.home)))
        .set_cwd(dir.into())
        .set_capabilities(Some(capability_sets(capabilities)))
        .set_rlimits(Some(limits).filter(|limits| !limits.is_empty()))
        .set_no_new_privileges(Some(true));
    if container.oom_score_adj != 0 {
        let score = i32::try_from(container.oom_score_adj).ok().filter(|score| (-1000..=1000).contains(score));
        let bad = || ExecError::BadSpec { field: "oom_score_adj", problem: "must be within -1000..=1000".into() };
        process.set_oom_score_adj(Some(score.ok_or_else(bad)?));
    }
    Ok(process)
}

/// The process of a health check: as the container's own, with another command.
#[must_use]
pub fn exec_process(own: &Process, command: &[String]) -> Process {
    let mut process = own.clone();
    process.set_args(Some(command.to_vec())).set_terminal(Some(false));
    process
}

/// The process that somebody runs in a container: the container's own, but for what was asked for. `user` is the one asked for, found
/// in the container's files.
///
/// # Errors
/// For a working directory that leads out of the container.
pub fn exec_program(own: &Process, program: &Program, user: Option<&UserIds>) -> Result<Process, ExecError> {
    let mut process = exec_process(own, &program.command);
    process.set_terminal(Some(program.has_terminal));
    let mut env = own.env().clone().unwrap_or_default();
    if program.has_terminal {
        set_variable(&mut env, "TERM=xterm");
    }
    if let Some(ids) = user {
        env.retain(|entry| !entry.starts_with("HOME="));
        if !ids.home.is_empty() {
            env.push(format!("HOME={}", ids.home));
        }
        let mut user = User::default();
        user.set_uid(ids.uid).set_gid(ids.gid).set_additional_gids(Some(ids.groups.clone()).filter(|groups| !groups.is_empty()));
        process.set_user(user);
    }
    for entry in &program.env {
        set_variable(&mut env, entry);
    }
    process.set_env(Some(env));
    if !program.dir.is_empty() {
        check_dir(&program.dir)?;
        process.set_cwd(program.dir.clone().into());
    }
    if program.is_privileged {
        process.set_capabilities(Some(capability_sets(&capabilities(&["ALL".to_owned()], &[])?)));
    }
    Ok(process)
}

/// `NAME=value` takes the place of an earlier one; a bare `NAME` removes it.
fn set_variable(env: &mut Vec<String>, entry: &str) {
    let name = entry.split('=').next().unwrap_or_default();
    env.retain(|known| known.split('=').next() != Some(name));
    if entry.contains('=') {
        env.push(entry.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::reaches_proc;

    #[test]
    fn working_directories_in_proc_are_seen() {
        for bad in ["/proc", "/proc/self/fd/7", "//proc/1", "/a/../proc", "/../proc", "/./proc/."] {
            assert!(reaches_proc(bad), "{bad}");
        }
        for good in ["/", "/process", "/srv/proc", "/proc/../srv"] {
            assert!(!reaches_proc(good), "{good}");
        }
    }
}
