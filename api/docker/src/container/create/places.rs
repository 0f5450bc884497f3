//! Which networks a container is to be on, and as what.

use super::host;
use crate::types::create::{EndpointConfig, NetworkingConfig, is_unsaid};
use crate::types::network::is_predefined_name;
use crate::{ApiError, NetworkWish, PlaceWish};
use serde_json::Value;
use std::net::IpAddr;

/// This node's own network by all its names.
fn plain_name(network: &str) -> &str {
    if matches!(network, "" | "default") { "bridge" } else { network }
}

/// What of the addresses wished for can be given.
fn addresses(network: &str, wish: &Value) -> Result<Vec<IpAddr>, ApiError> {
    let fields = match wish {
        Value::Null => return Ok(Vec::new()),
        Value::Object(fields) => fields,
        _ => return Err(ApiError::invalid(format!("invalid endpoint settings of network {network}: IPAMConfig is no object"))),
    };
    let mut addresses = Vec::new();
    for (field, value) in fields.iter().filter(|(_, value)| !is_unsaid(value)) {
        let text = value.as_str().unwrap_or_default();
        let (word, address) = match field.as_str() {
            "IPv4Address" => ("IPv4", text.parse().ok().filter(IpAddr::is_ipv4)),
            "IPv6Address" => ("IPv6", text.parse().ok().filter(IpAddr::is_ipv6)),
            _ => {
                return Err(ApiError::unimplemented(format!(
                    "NetworkingConfig.EndpointsConfig.{network}.IPAMConfig.{field} is not supported; there are IPv4Address and IPv6Address"
                )));
            }
        };
        addresses.push(address.ok_or_else(|| ApiError::invalid(format!("invalid {word} address: {value} of network {network}")))?);
    }
    Ok(addresses)
}

/// One place, as a client asks for it.
///
/// # Errors
/// By name, what cannot be had.
pub(crate) fn place(network: &str, asked: &EndpointConfig) -> Result<PlaceWish, ApiError> {
    let EndpointConfig { ipam_config, links, aliases, mac_address, driver_opts, gw_priority } = asked;
    let others = [("Links", links), ("MacAddress", mac_address), ("DriverOpts", driver_opts), ("GwPriority", gw_priority)];
    if let Some((field, _)) = others.into_iter().find(|(_, value)| !is_unsaid(value)) {
        return Err(ApiError::unimplemented(format!(
            "NetworkingConfig.EndpointsConfig.{network}.{field} is not supported by this node; leave it out"
        )));
    }
    let addresses = addresses(network, ipam_config)?;
    if is_predefined_name(network) {
        if !addresses.is_empty() {
            return Err(ApiError::invalid("user specified IP address is supported on user defined networks only"));
        }
        if !aliases.is_empty() {
            return Err(ApiError::invalid("network-scoped alias is supported only for containers in user defined networks"));
        }
    }
    Ok(PlaceWish { network: plain_name(network).to_owned(), aliases: aliases.clone(), addresses })
}

/// All of them: that of the mode first, as it has the way out.
///
/// # Errors
/// By name, what cannot be had.
pub(super) fn places(mode: &str, asked: &NetworkingConfig) -> Result<(NetworkWish, Vec<PlaceWish>), ApiError> {
    let wish = host::network(mode)?;
    let first = plain_name(mode);
    let mut places = asked.endpoints_config.iter().map(|(network, asked)| place(network, asked)).collect::<Result<Vec<_>, _>>()?;
    if matches!(wish, NetworkWish::Host | NetworkWish::None) {
        return match places.iter().find(|place| place.network != first) {
            Some(other) => Err(ApiError::invalid(format!(
                "conflicting options: a container with network mode {first} is on no other network ({})",
                other.network
            ))),
            None => Ok((wish, Vec::new())),
        };
    }
    if let Some(odd) = places.iter().find(|place| matches!(place.network.as_str(), "host" | "none")) {
        return Err(ApiError::invalid(format!("conflicting options: {} is a network mode, and no network beside others", odd.network)));
    }
    let at = places.iter().position(|place| place.network == first);
    let own = at.map_or_else(|| PlaceWish { network: first.to_owned(), ..PlaceWish::default() }, |at| places.remove(at));
    places.insert(0, own);
    match places.as_slice() {
        [only] if only.network == "bridge" => Ok((NetworkWish::Own, Vec::new())),
        _ => Ok((NetworkWish::Places, places)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wished(mode: &str, endpoints: Value) -> Result<(NetworkWish, Vec<PlaceWish>), ApiError> {
        places(mode, &crate::body::from_value(json!({ "EndpointsConfig": endpoints })).unwrap())
    }

    #[test]
    fn networks_come_in_the_order_of_the_client_s_mode() {
        assert_eq!(wished("", json!({})).unwrap(), (NetworkWish::Own, vec![]));
        assert_eq!(wished("default", json!({ "bridge": {} })).unwrap(), (NetworkWish::Own, vec![]));
        assert_eq!(wished("host", json!({ "host": {} })).unwrap(), (NetworkWish::Host, vec![]));
        let (wish, places) =
            wished("net", json!({ "a": {}, "net": { "Aliases": ["x"], "IPAMConfig": { "IPv4Address": "10.0.1.7" } } })).unwrap();
        assert_eq!(wish, NetworkWish::Places);
        let net = PlaceWish { network: "net".into(), aliases: vec!["x".into()], addresses: vec!["10.0.1.7".parse().unwrap()] };
        assert_eq!(places, [net, PlaceWish { network: "a".into(), ..PlaceWish::default() }]);
        let (_, both) = wished("bridge", json!({ "net": {} })).unwrap();
        assert_eq!(both.iter().map(|place| place.network.as_str()).collect::<Vec<_>>(), ["bridge", "net"]);
        // Nothing said of a place is a place with defaults.
        let (_, both) = wished("bridge", json!({ "net": null })).unwrap();
        assert_eq!(both[1], PlaceWish { network: "net".into(), ..PlaceWish::default() });
        assert_eq!(wished("bridge", json!({ "bridge": null })).unwrap(), (NetworkWish::Own, vec![]));
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        for (mode, endpoints, status, words) in [
            ("container:x", json!({}), 501, "HostConfig.NetworkMode"),
            ("host", json!({ "net": {} }), 400, "network mode host"),
            ("net", json!({ "host": {} }), 400, "host is a network mode"),
            ("bridge", json!({ "bridge": { "Aliases": ["x"] } }), 400, "network-scoped alias"),
            ("bridge", json!({ "bridge": { "IPAMConfig": { "IPv4Address": "10.0.0.9" } } }), 400, "user defined networks only"),
            ("net", json!({ "net": { "IPAMConfig": { "IPv4Address": "10.0" } } }), 400, "invalid IPv4 address: \"10.0\""),
            ("net", json!({ "net": { "IPAMConfig": { "LinkLocalIPs": ["169.254.1.1"] } } }), 501, "LinkLocalIPs"),
            ("net", json!({ "net": { "MacAddress": "02:00:00:00:00:01" } }), 501, "net.MacAddress"),
            ("net", json!({ "net": { "DriverOpts": { "a": "b" } } }), 501, "net.DriverOpts"),
        ] {
            let refused = wished(mode, endpoints).unwrap_err();
            assert!(refused.status() == status && refused.message.contains(words), "{mode}: {refused:?}");
        }
    }
}
