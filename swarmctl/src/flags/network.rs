//! `network create`.

use super::values::pair;
use clap::Args;
use ipnet::IpNet;
use skep_types::{AddressFamily, Annotations, Driver, IpamConfig, IpamOptions, Labels, NetworkSpec};
use std::net::IpAddr;

/// `network create`.
#[derive(Debug, Default, Args)]
pub struct NetworkFlags {
    /// overlay: spans the hosts of the cluster; bridge: joins the tasks of a node, each node for itself; macvlan: puts tasks on the hosts'
    /// own network, beside the hosts (with --opt parent=LINK, and that network's --subnet, --gateway and a free --ip-range); host:
    /// shares the host's
    #[arg(long, short = 'd', default_value = "overlay", value_name = "DRIVER")]
    driver: String,
    /// Range of the network's addresses, such as 10.9.0.0/24; one per family (default: from the cluster's pools)
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<IpNet>,
    /// The network's own address in a subnet (default: the first one)
    #[arg(long, value_name = "IP")]
    gateway: Vec<IpAddr>,
    /// Part of a subnet from which addresses are given (default: all of it)
    #[arg(long, value_name = "CIDR")]
    ip_range: Vec<IpNet>,
    /// IPv6 addresses as well; their subnet may be left out
    #[arg(long)]
    ipv6: bool,
    /// No way out of the network and none in
    #[arg(long)]
    internal: bool,
    /// Containers outside of services may be attached (`network attach`)
    #[arg(long)]
    attachable: bool,
    /// The network over which published ports reach tasks; there is one
    #[arg(long, conflicts_with_all = ["attachable", "internal"])]
    ingress: bool,
    /// Option of the driver: `encrypted`, for packets between hosts (only nodes that can encrypt get tasks of the network); mtu=BYTES;
    /// of macvlan: parent=LINK and macvlan_mode=bridge|private|vepa|passthru
    #[arg(long, short = 'o', value_name = "KEY[=VALUE]", value_parser = pair)]
    opt: Vec<(String, String)>,
    /// Label of the network
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
}

impl NetworkFlags {
    /// What is asked for.
    ///
    /// # Errors
    /// An address or range that is in no subnet given, two of them in one, or two subnets of a family.
    pub fn spec(&self, name: String) -> Result<NetworkSpec, String> {
        let configs = self.subnets()?;
        let v6 = self.ipv6 || self.subnet.iter().any(|subnet| matches!(subnet, IpNet::V6(_)));
        Ok(NetworkSpec {
            annotations: Annotations { name, labels: self.label.iter().cloned().collect(), ..Annotations::default() },
            driver: Some(Driver { name: self.driver.clone(), options: self.opt.iter().cloned().collect() }),
            ipv6_enabled: v6,
            internal: self.internal,
            ipam: (!configs.is_empty()).then(|| IpamOptions { configs, ..IpamOptions::default() }),
            attachable: self.attachable,
            ingress: self.ingress,
            config_from: String::new(),
        })
    }

    fn subnets(&self) -> Result<Vec<IpamConfig>, String> {
        let family = |net: &IpNet| if matches!(net, IpNet::V4(_)) { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 };
        let mut configs: Vec<(IpNet, IpamConfig)> = Vec::new();
        for subnet in &self.subnet {
            if subnet.trunc() != *subnet {
                return Err(format!("--subnet {subnet} has bits set behind its prefix; write {}", subnet.trunc()));
            }
            if let Some((other, _)) = configs.iter().find(|(other, _)| family(other) == family(subnet)) {
                return Err(format!("--subnet {other} and {subnet} are of one family; a network has at most one subnet of each"));
            }
            let config =
                IpamConfig { family: family(subnet), subnet: subnet.to_string(), reserved: Labels::default(), ..IpamConfig::default() };
            configs.push((*subnet, config));
        }
        for gateway in &self.gateway {
            let (_, config) = configs
                .iter_mut()
                .find(|(subnet, _)| subnet.contains(gateway))
                .ok_or_else(|| format!("--gateway {gateway} is in none of the subnets given; add --subnet"))?;
            if !config.gateway.is_empty() {
                return Err(format!("--gateway {gateway}: {} is the gateway of {} already", config.gateway, config.subnet));
            }
            config.gateway = gateway.to_string();
        }
        for range in &self.ip_range {
            let (_, config) = configs
                .iter_mut()
                .find(|(subnet, _)| subnet.contains(range))
                .ok_or_else(|| format!("--ip-range {range} is in none of the subnets given; add --subnet"))?;
            if !config.range.is_empty() {
                return Err(format!("--ip-range {range}: {} is the range of {} already", config.range, config.subnet));
            }
            config.range = range.to_string();
        }
        Ok(configs.into_iter().map(|(_, config)| config).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: NetworkFlags,
    }

    fn spec(line: &str) -> Result<NetworkSpec, String> {
        let words = std::iter::once("create").chain(line.split_whitespace());
        Line::try_parse_from(words).map_err(|error| error.to_string())?.flags.spec("back".into())
    }

    #[test]
    fn addresses_find_their_subnet() {
        let wanted =
            spec("--subnet 10.9.0.0/24 --subnet fd00:9::/64 --gateway fd00:9::1 --gateway 10.9.0.254 --ip-range 10.9.0.128/25").unwrap();
        let configs = wanted.ipam.unwrap().configs;
        let texts: Vec<_> = configs.iter().map(|config| (config.subnet.as_str(), config.gateway.as_str(), config.range.as_str())).collect();
        assert_eq!(texts, [("10.9.0.0/24", "10.9.0.254", "10.9.0.128/25"), ("fd00:9::/64", "fd00:9::1", "")]);
        assert!(wanted.ipv6_enabled, "a subnet of IPv6 says so");
        assert_eq!(spec("").unwrap().ipam, None);
        assert_eq!(spec("--opt encrypted").unwrap().driver.unwrap().options.get("encrypted").map(String::as_str), Some(""));
        assert_eq!(spec("--opt mtu=1400").unwrap().driver.unwrap().options.get("mtu").map(String::as_str), Some("1400"));
    }

    #[test]
    fn what_fits_nowhere_is_refused_with_the_cure() {
        for (line, reason) in [
            ("--subnet 10.9.0.1/24", "write 10.9.0.0/24"),
            ("--subnet 10.9.0.0/24 --subnet 10.8.0.0/24", "at most one subnet of each"),
            ("--gateway 10.9.0.1", "add --subnet"),
            ("--subnet 10.9.0.0/24 --ip-range 10.8.0.0/25", "in none of the subnets"),
            ("--subnet 10.9.0.0/24 --gateway 10.9.0.1 --gateway 10.9.0.2", "already"),
            ("--subnet x", "invalid"),
            ("--ingress --attachable", "cannot be used with"),
        ] {
            let error = spec(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
