//! Networks, and how tasks and nodes are attached to them.

use super::{message, number};
use crate::v1;
use skep_types::{AddressFamily, FieldError, IpamConfig, IpamOptions, Network, NetworkAttachment, NetworkAttachmentConfig, NetworkSpec};

number!(AddressFamily, v1::ipam_config::AddressFamily { Unknown = Unknown, Ipv4 = Ipv4, Ipv6 = Ipv6 });

message!(IpamConfig <=> v1::IpamConfig { family, subnet, range, gateway, reserved });
// The driver is always written: workers of the original read its name without looking (wire-behaviour 28).
message!(IpamOptions <=> v1::IpamOptions { driver => full, configs });
message!(NetworkSpec <=> v1::NetworkSpec {
    annotations => full,
    driver: driver_config,
    ipv6_enabled,
    internal,
    ipam,
    attachable,
    ingress,
    config_from => config_from,
});
// `extra` is an answer to a client that asked for it by `appdata`; nothing of it is stored.
message!(Network <=> v1::Network { id, meta => full, spec => full, driver_state, ipam, pending_delete } drops { extra });
message!(NetworkAttachmentConfig <=> v1::NetworkAttachmentConfig { target, aliases, addresses, driver_attachment_opts });

/// Workers of the original crash on an attachment whose network lacks its driver, its IPAM or its IPAM's driver
/// (wire-behaviour 28), so those are written even when the allocator has not been there.
mod attachment {
    use super::{NetworkAttachment, v1};
    use crate::convert::{FromWire, ToWire, plain, required};
    use skep_types::{Driver, FieldError, IpamOptions, Network};
    use std::sync::Arc;

    impl FromWire for NetworkAttachment {
        type Wire = v1::NetworkAttachment;
        fn from_wire(wire: v1::NetworkAttachment) -> Result<Self, FieldError> {
            let v1::NetworkAttachment { network, addresses, aliases, driver_attachment_opts } = wire;
            let mut network: Network = required::from("network", network)?;
            // Written only because of the crash; see `to_wire`.
            network.driver_state.take_if(|driver| *driver == Driver::default());
            network.ipam.take_if(|ipam| *ipam == IpamOptions::default());
            Ok(Self {
                network: Arc::new(network),
                addresses: plain::from("addresses", addresses)?,
                aliases: plain::from("aliases", aliases)?,
                driver_attachment_opts: plain::from("driver_attachment_opts", driver_attachment_opts)?,
            })
        }
    }

    impl ToWire for NetworkAttachment {
        type Wire = v1::NetworkAttachment;
        fn to_wire(&self) -> v1::NetworkAttachment {
            let Self { network, addresses, aliases, driver_attachment_opts } = self;
            let mut network = plain::to(network);
            network.driver_state.get_or_insert_default();
            network.ipam.get_or_insert_default().driver.get_or_insert_default();
            v1::NetworkAttachment {
                network: Some(network),
                addresses: addresses.clone(),
                aliases: aliases.clone(),
                driver_attachment_opts: driver_attachment_opts.clone(),
            }
        }
    }
}

/// The only choice of the oneof `config_from`; an empty name is none.
pub(super) mod config_from {
    use super::FieldError;
    use crate::convert::plain;
    use crate::v1::network_spec::ConfigFrom;

    pub fn from(label: &str, wire: Option<ConfigFrom>) -> Result<String, FieldError> {
        let name = wire.map(|ConfigFrom::Network(name)| name).unwrap_or_default();
        plain::from("network", name).map_err(|error| error.inside(label))
    }

    pub fn to(value: &str) -> Option<ConfigFrom> {
        (!value.is_empty()).then(|| ConfigFrom::Network(value.to_owned()))
    }
}
