//! Networks, as `/networks` shows them; tasks show theirs in another form.

use super::common::Time;
use super::value::is_default;
use crate::ApiError;
use serde::{Deserialize, Serialize};
use skep_types::{
    AddressFamily, Annotations, Driver, IpamConfig as WantedSubnet, IpamOptions, Labels, Network as ClusterNetwork, NetworkSpec,
};
use std::collections::BTreeMap;

/// Answer of `GET /networks/{id}`, and of lists without what is on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network {
    pub name: String,
    pub id: String,
    pub created: Time,
    /// `swarm` or `local`.
    pub scope: &'static str,
    pub driver: String,
    /// From API 1.47 on.
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    pub enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    pub ipam: Ipam,
    pub internal: bool,
    pub attachable: bool,
    pub ingress: bool,
    pub config_from: ConfigReference,
    pub config_only: bool,
    /// Null where dockerd has a network of the cluster that is not in use on this node.
    pub containers: Option<BTreeMap<String, Endpoint>>,
    pub options: Option<Labels>,
    pub labels: Option<Labels>,
    #[serde(skip_serializing_if = "is_default")]
    pub peers: Vec<Peer>,
    #[serde(skip_serializing_if = "is_default")]
    pub services: BTreeMap<String, ServiceInfo>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Ipam {
    pub driver: String,
    pub options: Option<Labels>,
    pub config: Option<Vec<IpamConfig>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct IpamConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "is_default")]
    pub ip_range: String,
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: String,
    #[serde(rename = "AuxiliaryAddresses", skip_serializing_if = "is_default")]
    pub aux_addresses: Labels,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ConfigReference {
    pub network: String,
}

/// What a container of this node has on the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Endpoint {
    #[serde(rename = "Name")]
    pub name: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(rename = "MacAddress")]
    pub mac_address: String,
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

/// A node with tasks on the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Peer {
    #[serde(rename = "Name")]
    pub name: String,
    #[serde(rename = "IP")]
    pub ip: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ServiceInfo {
    #[serde(rename = "VIP")]
    pub vip: String,
    #[serde(rename = "Ports")]
    pub ports: Vec<String>,
    #[serde(rename = "LocalLBIndex")]
    pub local_lb_index: u32,
    #[serde(rename = "Tasks")]
    pub tasks: Vec<TaskInfo>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TaskInfo {
    #[serde(rename = "Name")]
    pub name: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(rename = "EndpointIP")]
    pub endpoint_ip: String,
    #[serde(rename = "Info")]
    pub info: BTreeMap<String, String>,
}

/// `POST /networks/create`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct CreateRequest {
    pub name: String,
    pub driver: String,
    pub scope: String,
    #[serde(rename = "EnableIPv4")]
    pub enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: Option<bool>,
    #[serde(rename = "IPAM")]
    pub ipam: Option<Ipam>,
    pub internal: bool,
    pub attachable: bool,
    pub ingress: bool,
    pub config_only: bool,
    pub config_from: Option<ConfigReference>,
    pub options: Labels,
    pub labels: Labels,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Created {
    pub id: String,
    pub warning: String,
}

fn or_null(labels: &Labels) -> Option<Labels> {
    (!labels.is_empty()).then(|| labels.clone())
}

/// Older clusters mark the network of published ports by a label.
pub(crate) fn is_ingress(network: &ClusterNetwork) -> bool {
    let annotations = &network.spec.annotations;
    network.spec.ingress || (annotations.name == "ingress" && annotations.labels.contains_key("com.docker.swarm.internal"))
}

impl From<&ClusterNetwork> for Network {
    fn from(network: &ClusterNetwork) -> Self {
        let spec = &network.spec;
        let state = network.driver_state.as_ref();
        Self {
            name: spec.annotations.name.clone(),
            id: network.id.to_string(),
            created: network.meta.created_at.into(),
            scope: "swarm",
            driver: state.map(|state| state.name.clone()).filter(|name| !name.is_empty()).unwrap_or_else(|| network.driver_name().into()),
            enable_ipv4: Some(true),
            enable_ipv6: spec.ipv6_enabled,
            ipam: network.ipam.as_ref().or(spec.ipam.as_ref()).map(Into::into).unwrap_or_default(),
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: is_ingress(network),
            config_from: ConfigReference { network: spec.config_from.clone() },
            config_only: false,
            containers: None,
            options: state.or(spec.driver.as_ref()).and_then(|driver| or_null(&driver.options)),
            labels: or_null(&spec.annotations.labels),
            peers: Vec::new(),
            services: BTreeMap::new(),
        }
    }
}

impl From<&IpamOptions> for Ipam {
    fn from(ipam: &IpamOptions) -> Self {
        let driver = if ipam.driver.name.is_empty() { "default" } else { &ipam.driver.name };
        Self { driver: driver.into(), options: or_null(&ipam.driver.options), config: Some(ipam.configs.iter().map(Into::into).collect()) }
    }
}

impl From<&WantedSubnet> for IpamConfig {
    fn from(config: &WantedSubnet) -> Self {
        let WantedSubnet { family: _, subnet, range, gateway, reserved } = config.clone();
        Self { subnet, ip_range: range, gateway, aux_addresses: reserved }
    }
}

impl From<IpamConfig> for WantedSubnet {
    fn from(json: IpamConfig) -> Self {
        let IpamConfig { subnet, ip_range, gateway, aux_addresses } = json;
        let family = if subnet.contains(':') { AddressFamily::Ipv6 } else { AddressFamily::Ipv4 };
        Self { family, subnet, range: ip_range, gateway, reserved: aux_addresses }
    }
}

impl CreateRequest {
    /// The network of the cluster that is meant.
    ///
    /// # Errors
    /// 501 for what the cluster's networks do not have.
    pub fn into_spec(self) -> Result<NetworkSpec, ApiError> {
        let Self {
            name,
            driver,
            scope: _,
            enable_ipv4,
            enable_ipv6,
            ipam,
            internal,
            attachable,
            ingress,
            config_only,
            config_from,
            options,
            labels,
        } = self;
        if enable_ipv4 == Some(false) {
            return Err(ApiError::unimplemented("networks without IPv4 are not supported; leave EnableIPv4 out"));
        }
        if config_only {
            return Err(ApiError::unimplemented(
                "networks that only keep a configuration are not supported; give the configuration to the network itself",
            ));
        }
        let ipam = ipam.filter(|ipam| *ipam != Ipam::default()).map(|ipam| IpamOptions {
            driver: Driver {
                name: if ipam.driver.is_empty() { "default".into() } else { ipam.driver },
                options: ipam.options.unwrap_or_default(),
            },
            configs: ipam.config.unwrap_or_default().into_iter().map(Into::into).collect(),
        });
        Ok(NetworkSpec {
            annotations: Annotations { name, labels, indices: Vec::new() },
            driver: Some(Driver { name: driver, options }),
            ipv6_enabled: enable_ipv6.unwrap_or(false),
            internal,
            ipam,
            attachable,
            ingress,
            config_from: config_from.unwrap_or_default().network,
        })
    }
}

/// The networks that every node has for itself and that no call makes or removes.
pub(crate) fn predefined() -> [Network; 3] {
    [("bridge", "bridge"), ("host", "host"), ("none", "null")].map(|(name, driver)| Network {
        name: name.into(),
        // 64 digits of base 16, the same after every start: the name's own bytes, then zeros.
        id: format!("{:0<64}", name.bytes().map(|byte| format!("{byte:02x}")).collect::<String>()),
        created: Time::default(),
        scope: "local",
        driver: driver.into(),
        enable_ipv4: Some(true),
        enable_ipv6: false,
        ipam: Ipam { driver: "default".into(), options: None, config: None },
        internal: false,
        attachable: false,
        ingress: false,
        config_from: ConfigReference::default(),
        config_only: false,
        containers: Some(BTreeMap::new()),
        options: Some(Labels::new()),
        labels: Some(Labels::new()),
        peers: Vec::new(),
        services: BTreeMap::new(),
    })
}

/// The id in this API of the network of that name that every node has for itself.
#[must_use]
pub fn predefined_network_id(name: &str) -> Option<String> {
    predefined().into_iter().find(|network| network.name == name).map(|network| network.id)
}

/// Whether the name is one of [`predefined`] or means one.
pub(crate) fn is_predefined_name(name: &str) -> bool {
    matches!(name, "bridge" | "host" | "none" | "default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{ENCRYPTED_OPTION, NetworkId};

    #[test]
    fn a_network_of_the_cluster_is_shown_as_dockerd_shows_it() {
        let json = serde_json::json!({
            "Name": "web", "Driver": "overlay", "CheckDuplicate": true, "Attachable": true, "EnableIPv6": null,
            "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": "10.9.0.0/24", "IPRange": "10.9.0.0/25"}]},
            "Options": {"encrypted": ""}, "Labels": {"a": "b"}
        });
        let request: CreateRequest = crate::body::from_value(json).unwrap();
        let mut network = ClusterNetwork::new(NetworkId::for_test(7), request.into_spec().unwrap());
        assert!(network.is_encrypted());
        network.driver_state = network.spec.driver.clone();
        let shown = serde_json::to_value(Network::from(&network)).unwrap();
        assert_eq!(
            (&shown["Id"], &shown["Scope"], &shown["Driver"]),
            (&NetworkId::for_test(7).as_str().into(), &"swarm".into(), &"overlay".into())
        );
        assert_eq!(
            shown["IPAM"],
            serde_json::json!({"Driver": "default", "Options": null, "Config": [{"Subnet": "10.9.0.0/24", "IPRange": "10.9.0.0/25"}]})
        );
        assert_eq!(
            (&shown["Containers"], &shown["Options"][ENCRYPTED_OPTION], &shown["Labels"]["a"]),
            (&serde_json::Value::Null, &"".into(), &"b".into())
        );
        assert!(shown.get("Peers").is_none() && shown.get("Services").is_none());
    }

    #[test]
    fn a_network_on_the_hosts_own_is_made_and_shown_as_dockerd_does() {
        let options = serde_json::json!({"parent": "eth1", "macvlan_mode": "bridge"});
        let json = serde_json::json!({
            "Name": "lan", "Driver": "macvlan", "Scope": "swarm", "Options": options,
            "IPAM": {"Config": [{"Subnet": "192.0.2.0/24", "IPRange": "192.0.2.128/25", "Gateway": "192.0.2.1"}]}
        });
        let request: CreateRequest = crate::body::from_value(json).unwrap();
        let mut network = ClusterNetwork::new(NetworkId::for_test(7), request.into_spec().unwrap());
        assert_eq!((network.parent(), network.macvlan_mode()), (Some("eth1"), "bridge"));
        network.driver_state = network.spec.driver.clone();
        let shown = serde_json::to_value(Network::from(&network)).unwrap();
        assert_eq!((&shown["Scope"], &shown["Driver"], &shown["Options"]), (&"swarm".into(), &"macvlan".into(), &options));
        assert_eq!(shown["IPAM"]["Config"][0]["Gateway"], "192.0.2.1");
    }

    #[test]
    fn what_the_cluster_has_not_is_refused() {
        for json in [serde_json::json!({"ConfigOnly": true}), serde_json::json!({"EnableIPv4": false})] {
            let request: CreateRequest = crate::body::from_value(json).unwrap();
            assert_eq!(request.into_spec().unwrap_err().kind, crate::ErrorKind::Unimplemented);
        }
    }

    #[test]
    fn predefined_networks_have_ids_of_their_own() {
        let [bridge, host, none] = predefined();
        assert!([&bridge, &host, &none].iter().all(|network| network.id.len() == 64 && is_predefined_name(&network.name)));
        assert!(bridge.id[..12] != host.id[..12] && host.id[..12] != none.id[..12]);
    }
}
