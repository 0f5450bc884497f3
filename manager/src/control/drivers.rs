//! What networks whose driver is not `overlay` may ask for. Pure.
//!
//! An option that does nothing, or asks for what the driver cannot do, is refused by its name.

use skep_types::{AddressFamily, Driver, FieldError, IpamConfig, MACVLAN_MODE_OPTION, MTU_OPTIONS, NetworkSpec, PARENT_OPTION};

/// A link's name on a host: 15 bytes (`IFNAMSIZ` less the NUL), neither a slash nor a space (`dev_valid_name` in net/core/dev.c).
const LINK_NAME: usize = 15;

/// Of a macvlan; empty is the first.
const MODES: [&str; 5] = ["", "bridge", "private", "vepa", "passthru"];

/// Checks a network of a driver other than `overlay`.
///
/// # Errors
/// The field that the driver does not take, with the way out.
pub(super) fn check(spec: &NetworkSpec, driver: &Driver) -> Result<(), FieldError> {
    match driver.name.as_str() {
        "bridge" => options(driver, &[], "the tasks of one node reach each other without leaving it"),
        "macvlan" => macvlan(spec, driver),
        "host" => host(spec, driver),
        name => {
            let problem = format!("networks of driver {name:?} are not supported; use overlay, bridge, macvlan or host");
            Err(FieldError::new("driver_config.name", problem))
        }
    }
}

/// Those that the driver has, besides that of the size of packets.
fn options(driver: &Driver, known: &[&str], why_not_encrypted: &str) -> Result<(), FieldError> {
    for (name, value) in &driver.options {
        let field = || format!("driver_config.options[{name}]");
        if MTU_OPTIONS.contains(&name.as_str()) {
            super::validate::mtu(value).map_err(|problem| FieldError::new(field(), problem))?;
        } else if name == skep_types::ENCRYPTED_OPTION {
            let problem = format!("is for networks of driver overlay; with {}, {why_not_encrypted}", driver.name);
            return Err(FieldError::new(field(), problem));
        } else if !known.contains(&name.as_str()) {
            let known: Vec<&str> = known.iter().copied().chain(["mtu"]).collect();
            return Err(FieldError::new(field(), format!("is not known to driver {}; known are {}", driver.name, known.join(", "))));
        }
    }
    Ok(())
}

fn macvlan(spec: &NetworkSpec, driver: &Driver) -> Result<(), FieldError> {
    options(driver, &[PARENT_OPTION, MACVLAN_MODE_OPTION], "packets are on the hosts' own network as they are")?;
    let field = format!("driver_config.options[{PARENT_OPTION}]");
    match driver.options.get(PARENT_OPTION).map(String::as_str) {
        None => return Err(FieldError::new(field, "is missing; name the hosts' link that the network lies on, such as parent=eth1")),
        Some(name) if !is_link_name(name) => return Err(FieldError::new(field, format!("{name:?} is not the name of a link"))),
        Some(_) => {}
    }
    let mode = driver.options.get(MACVLAN_MODE_OPTION).map_or("", String::as_str);
    if !MODES.contains(&mode) {
        let problem = format!("{mode:?} is not known; use bridge, private, vepa or passthru");
        return Err(FieldError::new(format!("driver_config.options[{MACVLAN_MODE_OPTION}]"), problem));
    }
    if spec.attachable {
        let problem = "cannot be with driver macvlan; make the link in the container's namespace yourself, or use another driver";
        return Err(FieldError::new("attachable", problem));
    }
    // The addresses are the hosts' network's: the cluster's pools know nothing of it.
    let configs = spec.ipam.iter().flat_map(|ipam| &ipam.configs).filter(|config| !config.subnet.is_empty());
    let configs: Vec<&IpamConfig> = configs.collect();
    if configs.is_empty() {
        return Err(FieldError::new(
            "ipam.configs",
            "is missing; give the subnet of the hosts' network, its gateway, and a range in it that nobody else uses",
        ));
    }
    let is_v6 = |config: &&IpamConfig| config.family == AddressFamily::Ipv6 || config.subnet.contains(':');
    if !configs.iter().any(|config| !is_v6(config)) || (spec.ipv6_enabled && !configs.iter().any(is_v6)) {
        let problem = "has no subnet of one of the families; with driver macvlan give the hosts' network's of IPv4, and with ipv6_enabled that of IPv6";
        return Err(FieldError::new("ipam.configs", problem));
    }
    Ok(())
}

fn is_link_name(name: &str) -> bool {
    (1..=LINK_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(['/', ':'])
        && !name.contains(char::is_whitespace)
}

fn host(spec: &NetworkSpec, driver: &Driver) -> Result<(), FieldError> {
    let refuse =
        |field: &str, what: &str| Err(FieldError::new(field, format!("a network of driver host is the host's own and has no {what}")));
    if let Some(name) = driver.options.keys().next() {
        return refuse(&format!("driver_config.options[{name}]"), "options");
    }
    if spec.ipam.as_ref().is_some_and(|ipam| !ipam.configs.is_empty()) {
        return refuse("ipam.configs", "subnets of the cluster");
    }
    for (field, set, what) in [
        ("ipv6_enabled", spec.ipv6_enabled, "addresses of the cluster"),
        ("internal", spec.internal, "inside; it cannot be internal"),
        ("attachable", spec.attachable, "addresses to give; a container joins it by itself"),
    ] {
        if set {
            return refuse(field, what);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Annotations, IpamOptions};

    fn spec(name: &str, options: &[(&str, &str)], subnets: &[&str]) -> NetworkSpec {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let config = |subnet: &&str| IpamConfig { subnet: (*subnet).into(), ..IpamConfig::default() };
        let configs: Vec<IpamConfig> = subnets.iter().map(config).collect();
        NetworkSpec {
            annotations: Annotations { name: "lan".into(), ..Annotations::default() },
            driver: Some(Driver { name: name.into(), options }),
            ipam: (!configs.is_empty()).then(|| IpamOptions { configs, ..IpamOptions::default() }),
            ..NetworkSpec::default()
        }
    }

    fn outcome(spec: &NetworkSpec) -> String {
        super::super::validate::network(spec).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn what_a_driver_does_not_take_is_refused_by_name() {
        for (spec, reason) in [
            (spec("bridge", &[("encrypted", "")], &[]), "driver_config.options[encrypted]: is for networks of driver overlay"),
            (spec("bridge", &[("parent", "eth1")], &[]), "driver_config.options[parent]: is not known to driver bridge"),
            (spec("bridge", &[("mtu", "9")], &[]), "1280 to 65535"),
            (spec("macvlan", &[], &["192.0.2.0/24"]), "driver_config.options[parent]: is missing"),
            (spec("macvlan", &[("parent", "eth1"), ("macvlan_mode", "hub")], &["192.0.2.0/24"]), "use bridge, private, vepa or passthru"),
            (spec("macvlan", &[("parent", "eth1"), ("encrypted", "")], &["192.0.2.0/24"]), "is for networks of driver overlay"),
            (spec("macvlan", &[("parent", "a/b")], &["192.0.2.0/24"]), "not the name of a link"),
            (spec("macvlan", &[("parent", "eth1")], &[]), "ipam.configs: is missing"),
            (spec("macvlan", &[("parent", "eth1")], &["2001:db8::/64"]), "no subnet of one of the families"),
            (NetworkSpec { ipv6_enabled: true, ..spec("macvlan", &[("parent", "eth1")], &["192.0.2.0/24"]) }, "that of IPv6"),
            (NetworkSpec { attachable: true, ..spec("macvlan", &[("parent", "eth1")], &["192.0.2.0/24"]) }, "attachable: cannot be"),
            (spec("host", &[("mtu", "1400")], &[]), "driver_config.options[mtu]"),
            (spec("host", &[], &["192.0.2.0/24"]), "ipam.configs"),
            (NetworkSpec { internal: true, ..spec("host", &[], &[]) }, "internal"),
            (NetworkSpec { attachable: true, ..spec("host", &[], &[]) }, "attachable"),
            (spec("ipvlan", &[], &[]), "use overlay, bridge, macvlan or host"),
        ] {
            let said = outcome(&spec);
            assert!(said.contains(reason), "{spec:?}: {said}");
        }
    }

    #[test]
    fn what_a_driver_takes_is_fine() {
        let attachable = NetworkSpec { attachable: true, internal: true, ipv6_enabled: true, ..spec("bridge", &[("mtu", "1400")], &[]) };
        let lan = NetworkSpec { internal: true, ..spec("macvlan", &[("parent", "eth1.100"), ("mtu", "9000")], &["192.0.2.0/24"]) };
        for spec in [attachable, lan, spec("bridge", &[], &["10.7.0.0/24"]), spec("host", &[], &[])] {
            assert_eq!(outcome(&spec), "fine", "{spec:?}");
        }
    }
}
