//! What callers of the local socket ask for, understood.

use crate::address::{self, Addresses};
use crate::config::Config;
use anyhow::{Result, anyhow};
use ipnet::{IpNet, Ipv4Net};
use skep_proto::skep::InitRequest;
use skep_types::Availability;
use std::net::Ipv4Addr;
use std::time::Duration;

/// What the caller asked for cannot be.
#[derive(Debug, thiserror::Error)]
#[error("the request cannot be carried out")]
pub struct BadRequest(#[source] pub anyhow::Error);

/// A cluster to be made.
pub(super) struct Wanted {
    pub addresses: Addresses,
    pub lifetime: Duration,
    pub availability: Availability,
    /// Subnets of this machine's devices, from which the cluster's networks keep away.
    pub local_prefixes: Vec<String>,
}

impl Wanted {
    pub fn parse(request: &InitRequest, config: &Config) -> Result<Self> {
        let addresses = address::choose(config, &request.listen_addr, &request.advertise_addr)?;
        let lifetime = match request.node_cert_expiry {
            None => skep_ca::DEFAULT_LIFETIME,
            Some(asked) => Duration::try_from(asked).map_err(|_| anyhow!("node_cert_expiry: not a length of time"))?,
        };
        if lifetime < skep_ca::MIN_LIFETIME {
            anyhow::bail!("node_cert_expiry: {lifetime:?} is too short; at least {:?}", skep_ca::MIN_LIFETIME);
        }
        let local = skep_netlb::local_prefixes();
        let mut pools = Vec::new();
        for pool in &request.default_address_pool {
            pools.push(check_pool(pool, request.subnet_size, &local)?);
        }
        check_apart(&pools)?;
        check_port(request.data_path_port)?;
        let availability = skep_proto::parse("availability", request.availability).map_err(|error| anyhow!("{error}"))?;
        let local_prefixes = local.iter().map(ToString::to_string).collect();
        Ok(Self { addresses, lifetime, availability, local_prefixes })
    }
}

/// Registered ports of RFC 6335 §6; 0 = the usual one. As the original has it.
fn check_port(port: u32) -> Result<()> {
    if port != 0 && !(1024..=49151).contains(&port) {
        anyhow::bail!("data_path_port: {port} is not a port from 1024 to 49151");
    }
    Ok(())
}

/// A subnet is cut from one pool only.
fn check_apart(pools: &[Ipv4Net]) -> Result<()> {
    for (index, one) in pools.iter().enumerate() {
        if let Some(other) = pools[..index].iter().find(|other| other.contains(one) || one.contains(*other)) {
            anyhow::bail!("default_address_pool: {other} and {one} overlap; leave one out");
        }
    }
    Ok(())
}

/// A pool is an IPv4 network that holds at least one subnet of the size to be cut from it, and is not all within a subnet of this
/// machine: what it shares with one is left out when subnets are cut.
fn check_pool(pool: &str, subnet_size: u32, local: &[IpNet]) -> Result<Ipv4Net> {
    let wrong = || anyhow!("default_address_pool: {pool:?} is not an IPv4 network in CIDR form, such as 10.0.0.0/8");
    let (address, prefix) = pool.split_once('/').ok_or_else(wrong)?;
    let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(wrong)?;
    let size = if subnet_size == 0 { 24 } else { subnet_size };
    if size > 30 || size < prefix {
        anyhow::bail!("subnet_size: subnets of /{size} do not fit into the pool {pool}; use a number from {prefix} to 30");
    }
    if u32::from(address) & u32::MAX.checked_shr(prefix).unwrap_or(0) != 0 {
        anyhow::bail!("default_address_pool: {pool} has bits set after its prefix; write the network's first address");
    }
    let parsed: Ipv4Net = pool.parse().map_err(|_| wrong())?;
    if let Some(around) = local.iter().find(|local| local.contains(&IpNet::V4(parsed))) {
        anyhow::bail!(
            "default_address_pool: {pool} is within {around}, a network of this machine; tasks could not be told from hosts there"
        );
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_cannot_work_are_refused_by_name() {
        let local: [IpNet; 1] = ["10.20.0.0/16".parse().unwrap()];
        let check_pool = |pool: &str, size| check_pool(pool, size, &local);
        assert!(check_pool("10.0.0.0/8", 0).is_ok() && check_pool("10.21.0.0/16", 28).is_ok());
        for (pool, size, field) in [
            ("10.0.0.1/8", 0, "default_address_pool"),
            ("fd00::/8", 0, "default_address_pool"),
            ("10.0.0.0/26", 0, "subnet_size"),
            ("10.20.4.0/22", 0, "a network of this machine"),
        ] {
            let refused = check_pool(pool, size).unwrap_err().to_string();
            assert!(refused.contains(field), "{refused}");
        }
    }

    #[test]
    fn pools_that_overlap_and_ports_that_are_not_for_this_are_refused() {
        let pools = |texts: &[&str]| check_apart(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>());
        assert!(pools(&["10.20.0.0/16", "10.21.0.0/16"]).is_ok());
        assert!(pools(&["10.21.0.0/16", "10.20.0.0/14"]).unwrap_err().to_string().contains("10.21.0.0/16 and 10.20.0.0/14 overlap"));
        assert!([0, 1024, 4789, 49151].map(check_port).iter().all(Result::is_ok));
        assert!([1, 1023, 49152, 70_000].map(check_port).iter().all(Result::is_err));
    }
}
