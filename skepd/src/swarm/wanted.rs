//! What callers of the local socket ask for, understood.

use crate::address::{self, Addresses};
use crate::config::Config;
use anyhow::{Result, anyhow};
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
        for pool in &request.default_address_pool {
            check_pool(pool, request.subnet_size)?;
        }
        let availability = skep_proto::parse("availability", request.availability).map_err(|error| anyhow!("{error}"))?;
        Ok(Self { addresses, lifetime, availability })
    }
}

/// A pool is an IPv4 network that holds at least one subnet of the size to be cut from it.
fn check_pool(pool: &str, subnet_size: u32) -> Result<()> {
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_cannot_work_are_refused_by_name() {
        assert!(check_pool("10.0.0.0/8", 0).is_ok() && check_pool("10.20.0.0/16", 28).is_ok());
        for (pool, size, field) in
            [("10.0.0.1/8", 0, "default_address_pool"), ("fd00::/8", 0, "default_address_pool"), ("10.0.0.0/26", 0, "subnet_size")]
        {
            let refused = check_pool(pool, size).unwrap_err().to_string();
            assert!(refused.contains(field), "{refused}");
        }
    }
}
