//! What networks whose driver is not `overlay` may ask for. Pure.
//!
//! An option that does nothing, or asks for what the driver cannot do, is refused by its name.

use skep_types::{Driver, ENCRYPTED_OPTION, FieldError, MTU_OPTIONS, NetworkSpec};

/// Checks a network of a driver other than `overlay`.
///
/// # Errors
/// The field that the driver does not take, with the way out.
pub(super) fn check(spec: &NetworkSpec, driver: &Driver) -> Result<(), FieldError> {
    match driver.name.as_str() {
        "bridge" => bridge(driver),
        "host" => host(spec, driver),
        name => {
            let problem = format!("networks of driver {name:?} are not supported; use overlay, bridge or host");
            Err(FieldError::new("driver_config.name", problem))
        }
    }
}

/// That of the size of packets is all that the driver has.
fn bridge(driver: &Driver) -> Result<(), FieldError> {
    for (name, value) in &driver.options {
        let field = || format!("driver_config.options[{name}]");
        if MTU_OPTIONS.contains(&name.as_str()) {
            super::validate::mtu(value).map_err(|problem| FieldError::new(field(), problem))?;
        } else if name == ENCRYPTED_OPTION {
            let problem = "is for networks of driver overlay; what goes over a bridge never leaves its node";
            return Err(FieldError::new(field(), problem));
        } else {
            return Err(FieldError::new(field(), "is not known to driver bridge; it has mtu only"));
        }
    }
    Ok(())
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
    use skep_types::{Annotations, IpamConfig, IpamOptions};

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
            (spec("host", &[("mtu", "1400")], &[]), "driver_config.options[mtu]"),
            (spec("host", &[], &["192.0.2.0/24"]), "ipam.configs"),
            (NetworkSpec { internal: true, ..spec("host", &[], &[]) }, "internal"),
            (NetworkSpec { attachable: true, ..spec("host", &[], &[]) }, "attachable"),
            (spec("macvlan", &[("parent", "eth1")], &[]), "use overlay, bridge or host"),
        ] {
            let said = outcome(&spec);
            assert!(said.contains(reason), "{spec:?}: {said}");
        }
    }

    #[test]
    fn what_a_driver_takes_is_fine() {
        let attachable = NetworkSpec { attachable: true, internal: true, ipv6_enabled: true, ..spec("bridge", &[("mtu", "1400")], &[]) };
        for spec in [attachable, spec("bridge", &[], &["10.7.0.0/24"]), spec("host", &[], &[])] {
            assert_eq!(outcome(&spec), "fine", "{spec:?}");
        }
    }
}
