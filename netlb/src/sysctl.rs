//! Kernel settings under /proc/sys/net, of the namespace the calling thread is in.

use crate::error::NetlbError;
use std::fs;
use std::path::{Path, PathBuf};
use tracing::info;

const ROOT: &str = "/proc/sys/net";

/// A sandbox routes, also to where it has no route back, and answers for others.
///
/// `all` before `default`: `ip_forward` sets both. `accept_local`, because the gateway's address is that of the sandbox of
/// every node, and one may have to tell the others that a packet does not fit. `accept_dad` and `addr_gen_mode` keep the links to tasks, which need
/// no addresses, from spending time on them.
const SANDBOX_V4: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/default/accept_local", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/default/proxy_arp", "1"),
];
const SANDBOX_V6: &[(&str, &str)] = &[
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
];
/// A task takes addresses from nobody but us, waits for no duplicate detection, and has no other way than its sandbox. Of redirects the
/// sandbox sends one where a packet leaves by the link that it came by, as between two nodes of which one does not know yet where a task
/// went, and IPv6 has no setting against that (`send_redirects` is IPv4's).
const TASK_V6: &[(&str, &str)] = &[
    // It may have been without, and be on a network with IPv6 from now on.
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
];
/// Without an IPv6 address a task's links speak none; loopback was up before and keeps `::1`.
const TASK_NO_V6: &[(&str, &str)] = &[("ipv6/conf/default/disable_ipv6", "1")];

/// What a new namespace is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Sandbox,
    Task {
        ipv6: bool,
    },
    /// Somebody else's: nothing is set.
    Foreign,
}

/// Whether rules may answer packets before a way is chosen for them (Linux 5.9, `nft_reject` at prerouting).
pub(crate) fn kernel_rejects_before_routing() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    is_at_least(&release, (5, 9))
}

fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()) >= wanted
}

/// Whether this kernel speaks IPv6 at all (`ipv6.disable=1`, or not built in).
pub(crate) fn kernel_has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6").is_dir()
}

/// Whether new links of the host get IPv6: many servers have it switched off (`disable_ipv6=1`) rather than missing.
pub(crate) fn host_speaks_ipv6() -> bool {
    kernel_has_ipv6() && !is("ipv6/conf/default/disable_ipv6", "1")
}

/// Settings of a namespace of ours, for the calling thread's namespace.
pub(crate) fn set_for(purpose: Purpose) -> Result<(), NetlbError> {
    let v6 = kernel_has_ipv6();
    let wanted: &[&[(&str, &str)]] = match purpose {
        Purpose::Sandbox if v6 => &[SANDBOX_V4, SANDBOX_V6],
        Purpose::Sandbox => &[SANDBOX_V4],
        Purpose::Foreign => &[],
        Purpose::Task { .. } if !v6 => &[],
        Purpose::Task { ipv6: true } => &[TASK_V6],
        Purpose::Task { ipv6: false } => &[TASK_NO_V6],
    };
    for (key, value) in wanted.iter().copied().flatten() {
        write(&Path::new(ROOT).join(key), value)?;
    }
    Ok(())
}

/// Lets the host forward packets, as published ports and egress need; says so where it was not so before.
pub(crate) fn let_host_forward() -> Result<(), NetlbError> {
    ensure("ipv4/ip_forward", "1")?;
    if !host_speaks_ipv6() || is("ipv6/conf/all/forwarding", "1") {
        return Ok(());
    }
    // A forwarding host ignores router advertisements unless accept_ra is 2: it would lose its own address and way out.
    for entry in fs::read_dir(Path::new(ROOT).join("ipv6/conf")).into_iter().flatten().flatten() {
        let key = entry.path().join("accept_ra");
        if fs::read_to_string(&key).is_ok_and(|value| value.trim() == "1") && entry.file_name() != "all" {
            write(&key, "2")?;
        }
    }
    info!("router advertisements stay accepted on this host while it forwards (accept_ra=2)");
    ensure("ipv6/conf/all/forwarding", "1")
}

/// Lets connections of the host's own loopback address leave by a link to a sandbox, and their answers come back.
pub(crate) fn let_loopback_leave_by(link: &str) -> Result<(), NetlbError> {
    let path = Path::new(ROOT).join("ipv4/conf").join(link).join("route_localnet");
    write(&path, "1")
}

/// What [`TASK_V6`] says of redirects, for one link of ours in a namespace that is not.
pub(crate) fn refuse_redirects_on(link: &str) -> std::io::Result<()> {
    match fs::write(Path::new(ROOT).join("ipv6/conf").join(link).join("accept_redirects"), "0") {
        // The link has no IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Lets a tunnel to other nodes have the address we give it, and no other, also on a host that has IPv6 switched off.
pub(crate) fn let_tunnel_have_address(link: &str) -> Result<(), NetlbError> {
    let dir = Path::new(ROOT).join("ipv6/conf").join(link);
    let wanted = [("addr_gen_mode", "1"), ("accept_ra", "0"), ("router_solicitations", "0"), ("disable_ipv6", "0")];
    wanted.iter().try_for_each(|(key, value)| write(&dir.join(key), value))
}

/// Connections through IPVS are known to conntrack, so that a task that reaches itself can be given another source; with a target
/// that is removed go what led there and the memory of it.
const IPVS: &[(&str, &str)] = &[("ipv4/vs/conntrack", "1"), ("ipv4/vs/expire_nodest_conn", "1")];

/// Whether IPVS can be told so; `Unsupported` if it was built without it.
pub(crate) fn ipvs_follows_conntrack() -> std::io::Result<()> {
    let there = IPVS.iter().all(|(key, _)| Path::new(ROOT).join(key).exists());
    if there { Ok(()) } else { Err(std::io::ErrorKind::Unsupported.into()) }
}

/// Settings of IPVS, for the calling thread's namespace.
pub(crate) fn set_for_ipvs() -> std::io::Result<()> {
    IPVS.iter().try_for_each(|(key, value)| fs::write(Path::new(ROOT).join(key), value))
}

fn is(key: &str, value: &str) -> bool {
    fs::read_to_string(Path::new(ROOT).join(key)).is_ok_and(|found| found.trim() == value)
}

fn ensure(key: &str, value: &str) -> Result<(), NetlbError> {
    if is(key, value) {
        return Ok(());
    }
    write(&Path::new(ROOT).join(key), value)?;
    info!(key, value, "kernel setting changed");
    Ok(())
}

fn write(path: &Path, value: &str) -> Result<(), NetlbError> {
    fs::write(path, value).map_err(|source| NetlbError::Sysctl { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    use super::is_at_least;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, is) in [("5.9.0\n", true), ("5.10.0-30-cloud-amd64\n", true), ("6.1-rc1", true), ("5.4.0-100", false), ("", false)] {
            assert_eq!(is_at_least(release, (5, 9)), is, "{release}");
        }
    }
}
