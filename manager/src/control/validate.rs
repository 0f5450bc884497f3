//! What is wrong with the specs of networks, secrets, configs, nodes and the cluster. Pure; services are checked by `skep-plan`.
//! Rules: spec wire-behaviour 18.1, 18.3, 20.1.

use super::drivers;
use skep_plan::validate::{check_name, check_texts};
use skep_types::{
    Annotations, CONFIG_MAX_BYTES, ClusterSpec, ConfigSpec, Driver, ENCRYPTED_OPTION, FieldError, IpamConfig, MTU_OPTIONS, NetworkSpec,
    SECRET_MAX_BYTES, SecretSpec, VXLAN_IDS_OPTION,
};
use std::net::IpAddr;
use std::time::Duration;

/// A certificate must live long enough to be renewed (`SK/ca/certificates.go`, `MinNodeCertExpiration`).
const MIN_CERT_EXPIRY: Duration = Duration::from_secs(3600);
/// Nodes are given up after some missed heartbeats.
const MAX_HEARTBEAT: Duration = Duration::from_secs(3600);

/// IPv6 needs 1280 bytes (RFC 8200 §5); no device takes more than IP's length can say.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 1280..=65535;

pub(super) fn labels(annotations: &Annotations) -> Result<(), FieldError> {
    check_texts("", annotations)
}

pub(super) fn network(spec: &NetworkSpec) -> Result<(), FieldError> {
    check_texts("", spec)?;
    check_name(&spec.annotations.name)?;
    if spec.attachable && spec.ingress {
        return Err(FieldError::new("attachable", "ingress network cannot be attachable; choose one"));
    }
    // Every node is on it, also one that cannot encrypt, and clients come to it in clear.
    if spec.ingress && spec.driver.as_ref().is_some_and(|driver| driver.options.contains_key(ENCRYPTED_OPTION)) {
        let why = "the ingress network cannot be encrypted; encrypt the network that services reach each other by";
        return Err(FieldError::new("driver_config.options[encrypted]", why));
    }
    driver("driver_config", spec.driver.as_ref())?;
    match &spec.driver {
        Some(driver) if driver.name == "overlay" => overlay(driver).map_err(|error| error.inside("driver_config"))?,
        Some(driver) => drivers::check(spec, driver)?,
        None => {}
    }
    let Some(ipam) = &spec.ipam else { return Ok(()) };
    if !matches!(ipam.driver.name.as_str(), "" | "default") {
        return Err(FieldError::new("ipam.driver.name", format!("{:?} is not known; use \"default\" or leave it out", ipam.driver.name)));
    }
    for (index, config) in ipam.configs.iter().enumerate() {
        subnet(config).map_err(|error| error.at(index).inside("configs").inside("ipam"))?;
    }
    Ok(())
}

fn driver(field: &str, driver: Option<&Driver>) -> Result<(), FieldError> {
    match driver {
        Some(driver) if driver.name.is_empty() => Err(FieldError::new(format!("{field}.name"), "is missing; give the driver's name")),
        _ => Ok(()),
    }
}

/// What is wrong with a size of packets.
pub(super) fn mtu(text: &str) -> Result<(), String> {
    let is_good = text.parse::<u32>().is_ok_and(|mtu| MTU_RANGE.contains(&mtu));
    let (least, most) = (MTU_RANGE.start(), MTU_RANGE.end());
    if is_good { Ok(()) } else { Err(format!("{text:?} is not a size of {least} to {most} bytes")) }
}

/// A driver or an option that does nothing here would be believed to do something: a network that is thought to be encrypted, for one.
fn overlay(driver: &Driver) -> Result<(), FieldError> {
    for (name, value) in &driver.options {
        let field = || format!("options[{name}]");
        if MTU_OPTIONS.contains(&name.as_str()) {
            mtu(value).map_err(|problem| FieldError::new(field(), problem))?;
        } else if name == ENCRYPTED_OPTION {
            // Any value encrypts; one that says otherwise was meant otherwise.
            let is_yes = matches!(value.as_str(), "" | "true");
            is_yes
                .then_some(())
                .ok_or_else(|| FieldError::new(field(), format!("{value:?} is not \"true\" or nothing; leave the option out")))?;
        } else if name != VXLAN_IDS_OPTION {
            return Err(FieldError::new(
                field(),
                format!("is not known; known are {ENCRYPTED_OPTION}, {}, mtu and {VXLAN_IDS_OPTION}", MTU_OPTIONS[0]),
            ));
        }
    }
    Ok(())
}

fn subnet(config: &IpamConfig) -> Result<(), FieldError> {
    let parse = |field: &str, text: &str| {
        Cidr::parse(text).ok_or_else(|| FieldError::new(field, format!("{text:?} is not a subnet in CIDR form, such as 10.1.0.0/24")))
    };
    // Empty: the allocator takes one from the cluster's pools; then nothing can lie inside it.
    if config.subnet.is_empty() {
        return match [("range", &config.range), ("gateway", &config.gateway)].into_iter().find(|(_, text)| !text.is_empty()) {
            Some((field, _)) => Err(FieldError::new(field, "cannot be given without a subnet")),
            None => Ok(()),
        };
    }
    let net = parse("subnet", &config.subnet)?;
    if !config.range.is_empty() {
        let range = parse("range", &config.range)?;
        if range.prefix < net.prefix || !net.contains(range.address) {
            return Err(FieldError::new("range", format!("{} is not inside the subnet {}", config.range, config.subnet)));
        }
    }
    if !config.gateway.is_empty() {
        let gateway: IpAddr =
            config.gateway.parse().map_err(|_| FieldError::new("gateway", format!("{:?} is not an IP address", config.gateway)))?;
        if !net.contains(gateway) {
            return Err(FieldError::new("gateway", format!("{gateway} is not inside the subnet {}", config.subnet)));
        }
    }
    Ok(())
}

/// An address with the length of its network part.
struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self { address, prefix })
    }

    fn contains(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        self.address.is_ipv4() == other.is_ipv4() && bits(self.address) & mask == bits(other) & mask
    }
}

pub(super) fn secret(spec: &SecretSpec) -> Result<(), FieldError> {
    check_texts("annotations", &spec.annotations)?;
    payload_name(&spec.annotations.name)?;
    templating(spec.templating.as_ref())?;
    match &spec.driver {
        Some(_) if !spec.data.0.is_empty() => Err(FieldError::new("data", "must be empty: the driver gives the value")),
        Some(_) => driver("driver", spec.driver.as_ref()),
        None => payload(spec.data.0.len(), SECRET_MAX_BYTES),
    }
}

pub(super) fn config(spec: &ConfigSpec) -> Result<(), FieldError> {
    check_texts("annotations", &spec.annotations)?;
    payload_name(&spec.annotations.name)?;
    templating(spec.templating.as_ref())?;
    payload(spec.data.0.len(), CONFIG_MAX_BYTES)
}

fn templating(driver: Option<&Driver>) -> Result<(), FieldError> {
    match driver {
        Some(driver) if driver.name != "golang" => {
            Err(FieldError::new("templating.name", format!("{:?} is not known; use \"golang\" or leave it out", driver.name)))
        }
        _ => Ok(()),
    }
}

fn payload(length: usize, most: usize) -> Result<(), FieldError> {
    match length {
        0 => Err(FieldError::new("data", "is empty; it must hold at least one byte")),
        length if length > most => Err(FieldError::new("data", format!("is {length} bytes long; at most {most} are allowed"))),
        _ => Ok(()),
    }
}

/// 1..64 letters, digits, inside also '-', '_' and '.'.
fn payload_name(name: &str) -> Result<(), FieldError> {
    let bad = |problem: String| Err(FieldError::new("annotations.name", problem));
    if name.is_empty() {
        return bad("is missing".into());
    }
    if name.len() > 64 {
        return bad(format!("has {} characters; at most 64 are allowed", name.len()));
    }
    let word = |c: u8| c.is_ascii_alphanumeric();
    let inside = |c: u8| word(c) || matches!(c, b'-' | b'_' | b'.');
    let ends = name.bytes().next().zip(name.bytes().last());
    if !ends.is_some_and(|(first, last)| word(first) && word(last)) || !name.bytes().all(inside) {
        return bad(format!("{name:?} is not a valid name; use letters, digits and, inside, '-', '_' and '.'"));
    }
    Ok(())
}

pub(super) fn cluster(spec: &ClusterSpec) -> Result<(), FieldError> {
    check_texts("annotations", &spec.annotations)?;
    if let Some(expiry) = spec.ca_config.node_cert_expiry.filter(|expiry| *expiry < MIN_CERT_EXPIRY) {
        let problem = format!("{} s is too short for a certificate; give at least one hour", expiry.as_secs());
        return Err(FieldError::new("ca_config.node_cert_expiry", problem));
    }
    if let Some(period) = spec.heartbeat_period.filter(|period| *period > MAX_HEARTBEAT) {
        let problem = format!("{} s is too long; a node that fails would not be missed. Give at most one hour", period.as_secs());
        return Err(FieldError::new("dispatcher.heartbeat_period", problem));
    }
    if spec.raft.snapshot_interval == 0 {
        return Err(FieldError::new("raft.snapshot_interval", "must be at least 1; the log would grow without end"));
    }
    if spec.raft.heartbeat_tick == 0 {
        return Err(FieldError::new("raft.heartbeat_tick", "must be at least 1"));
    }
    if spec.raft.election_tick <= spec.raft.heartbeat_tick {
        return Err(FieldError::new("raft.election_tick", "must be greater than raft.heartbeat_tick"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{IpamOptions, Sensitive};

    fn named(name: &str) -> Annotations {
        Annotations { name: name.into(), ..Annotations::default() }
    }

    #[test]
    fn a_payload_has_a_name_and_a_size() {
        let secret_of = |name: &str, size: usize| {
            secret(&SecretSpec { annotations: named(name), data: Sensitive(vec![1; size]), ..SecretSpec::default() })
                .map_err(|error| error.field)
        };
        assert_eq!(secret_of("a.b-c_d", 1), Ok(()));
        assert_eq!(secret_of("s", SECRET_MAX_BYTES), Ok(()));
        for name in ["", ".a", "a/b", "a\0b", &"x".repeat(65)] {
            assert!(secret_of(name, 1).is_err(), "{name:?}");
        }
        assert_eq!(secret_of("s", 0), Err("data".into()));
        assert_eq!(secret_of("s", SECRET_MAX_BYTES + 1), Err("data".into()));
        let config_of = |size: usize| config(&ConfigSpec { annotations: named("c"), data: Sensitive(vec![1; size]), templating: None });
        assert!(config_of(CONFIG_MAX_BYTES).is_ok());
        assert!(config_of(CONFIG_MAX_BYTES + 1).is_err());
    }

    #[test]
    fn a_network_promises_nothing_that_is_not_kept() {
        let check = |name: &str, options: &[(&str, &str)]| {
            let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let driver = Some(Driver { name: name.into(), options });
            let annotations = Annotations { name: "back".into(), ..Annotations::default() };
            network(&NetworkSpec { annotations, driver, ..NetworkSpec::default() }).map_err(|error| error.to_string())
        };
        for (name, options, reason) in [
            ("ipvlan", &[][..], "driver_config.name"),
            ("overlay", &[("encrypted", "false")], "driver_config.options[encrypted]"),
            ("overlay", &[("mtu", "100")], "1280 to 65535"),
            ("overlay", &[("mtu", "x")], "driver_config.options[mtu]"),
            ("overlay", &[("speed", "fast")], "is not known"),
        ] {
            let error = check(name, options).unwrap_err();
            assert!(error.contains(reason), "{name} {options:?}: {error}");
        }
        assert_eq!(check("overlay", &[("com.docker.network.driver.mtu", "1400"), (VXLAN_IDS_OPTION, "5000")]), Ok(()));
        assert_eq!((check("overlay", &[("encrypted", "")]), check("overlay", &[("encrypted", "true")])), (Ok(()), Ok(())));
        let options = [(ENCRYPTED_OPTION.to_owned(), String::new())].into();
        let annotations = Annotations { name: "in".into(), ..Annotations::default() };
        let driver = Some(Driver { name: "overlay".into(), options });
        let error = network(&NetworkSpec { annotations, driver, ingress: true, ..NetworkSpec::default() }).unwrap_err();
        assert!(error.to_string().contains("cannot be encrypted"), "{error}");
    }

    #[test]
    fn addresses_of_a_network_must_lie_inside_its_subnet() {
        let check = |subnet: &str, range: &str, gateway: &str| {
            let config = IpamConfig { subnet: subnet.into(), range: range.into(), gateway: gateway.into(), ..IpamConfig::default() };
            let ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
            network(&NetworkSpec { annotations: named("net"), ipam, ..NetworkSpec::default() }).map_err(|error| error.field)
        };
        assert_eq!(check("10.1.0.0/16", "10.1.2.0/24", "10.1.0.1"), Ok(()));
        assert_eq!(check("fd00:1::/64", "", "fd00:1::1"), Ok(()));
        assert_eq!(check("0.0.0.0/0", "", "1.2.3.4"), Ok(()));
        assert_eq!(check("", "", ""), Ok(()));
        assert_eq!(check("10.1.0.0", "", ""), Err("ipam.configs[0].subnet".into()));
        assert_eq!(check("10.1.0.0/33", "", ""), Err("ipam.configs[0].subnet".into()));
        assert_eq!(check("10.1.0.0/16", "10.2.0.0/24", ""), Err("ipam.configs[0].range".into()));
        assert_eq!(check("10.1.0.0/16", "10.0.0.0/8", ""), Err("ipam.configs[0].range".into()));
        assert_eq!(check("10.1.0.0/16", "", "10.2.0.1"), Err("ipam.configs[0].gateway".into()));
        assert_eq!(check("", "", "10.2.0.1"), Err("ipam.configs[0].gateway".into()));
    }

    #[test]
    fn a_cluster_needs_time_for_its_certificates_and_elections() {
        let field = |change: fn(&mut ClusterSpec)| {
            let mut spec = ClusterSpec::default();
            change(&mut spec);
            cluster(&spec).map_err(|error| error.field)
        };
        assert_eq!(field(|_| ()), Ok(()));
        assert_eq!(field(|spec| spec.ca_config.node_cert_expiry = Some(Duration::from_secs(60))), Err("ca_config.node_cert_expiry".into()));
        assert_eq!(field(|spec| spec.raft.election_tick = 1), Err("raft.election_tick".into()));
        assert_eq!(field(|spec| spec.raft.snapshot_interval = 0), Err("raft.snapshot_interval".into()));
        assert_eq!(field(|spec| spec.heartbeat_period = Some(Duration::MAX)), Err("dispatcher.heartbeat_period".into()));
    }
}
