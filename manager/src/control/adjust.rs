//! Changing a network that is in use: the gRPC service `NetworkSettings`, which the original has not.

use super::errors::{id, invalid, missing};
use super::validate;
use crate::authorize::caller;
use crate::shared::Shared;
use prost::Message as _;
use skep_proto::ToWire as _;
use skep_proto::skep::network_settings_server::NetworkSettings;
use skep_proto::skep::{UpdateNetworkRequest, UpdateNetworkResponse};
use skep_store::ProposeError;
use skep_types::{Action, ClusterView as _, Driver, FieldError, Kind, MTU_OPTIONS, Network, NetworkDriver, NetworkId, Object};
use std::sync::Arc;
use tonic::{Request, Response, Status};

const OVERLAY: &str = "overlay";

/// Tries to write a network that others write too; each is a lost race.
const TRIES: u32 = 5;

/// What managers call.
#[derive(Clone)]
pub(crate) struct NetworkSettingsService {
    shared: Arc<Shared>,
}

impl NetworkSettingsService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl NetworkSettings for NetworkSettingsService {
    async fn update(&self, request: Request<UpdateNetworkRequest>) -> Result<Response<UpdateNetworkResponse>, Status> {
        caller(&request)?;
        let request = request.into_inner();
        let mtu = (request.mtu != 0).then(|| request.mtu.to_string());
        if let Some(mtu) = &mtu {
            validate::mtu(mtu).map_err(|problem| invalid(FieldError::new("mtu", problem)))?;
        }
        let id: NetworkId = id("network_id", &request.network_id)?;
        let mut tries = 0;
        loop {
            let view = self.shared.store.view();
            let known = view.network(&id).ok_or_else(|| missing(Kind::Network, id.as_str()))?;
            let changed = with_mtu(known, mtu.as_deref())?;
            if changed == **known {
                return Ok(answer(known));
            }
            match self.shared.propose(vec![Action::Update(Object::Network(Arc::new(changed.clone())))]).await {
                Ok(_) => return Ok(answer(self.shared.store.view().network(&id).map_or(&changed, |now| now))),
                Err(ProposeError::Refused(_)) if tries < TRIES => tries += 1,
                Err(error) => return Err(super::errors::propose(error)),
            }
        }
    }
}

fn answer(network: &Network) -> Response<UpdateNetworkResponse> {
    Response::new(UpdateNetworkResponse { network: network.to_wire().encode_to_vec() })
}

/// The network with another size of packets, or none of its own. Nodes hear of it by the stream of network changes, dockerd by the options
/// with which its tasks' networks come.
fn with_mtu(known: &Network, mtu: Option<&str>) -> Result<Network, Status> {
    let name = &known.spec.annotations.name;
    if known.driver() != NetworkDriver::Overlay || known.is_predefined() {
        let why = format!("network {name} does not span nodes; a size of packets of its own is given when it is made");
        return Err(Status::failed_precondition(why));
    }
    if known.pending_delete {
        return Err(Status::failed_precondition(format!("network {name} is being removed")));
    }
    let set = |driver: &mut Driver| {
        driver.options.retain(|option, _| !MTU_OPTIONS.contains(&option.as_str()));
        driver.options.extend(mtu.map(|mtu| (MTU_OPTIONS[0].to_owned(), mtu.to_owned())));
    };
    let mut new = known.clone();
    if mtu.is_some() || new.spec.driver.is_some() {
        set(new.spec.driver.get_or_insert_with(|| Driver { name: OVERLAY.into(), ..Driver::default() }));
    }
    new.driver_state.iter_mut().for_each(set);
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Annotations, NetworkSpec};

    fn overlay(options: &[(&str, &str)]) -> Network {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let driver = Driver { name: "overlay".into(), options };
        let annotations = Annotations { name: "back".into(), ..Annotations::default() };
        let spec = NetworkSpec { annotations, driver: Some(driver.clone()), ..NetworkSpec::default() };
        Network { driver_state: Some(driver), ..Network::new(NetworkId::for_test(1), spec) }
    }

    #[test]
    fn the_size_is_what_was_said_last_and_nothing_else_changes() {
        let first = overlay(&[("mtu", "1300"), ("encrypted", "")]);
        let second = with_mtu(&first, Some("9000")).unwrap();
        assert_eq!(second, overlay(&[("com.docker.network.driver.mtu", "9000"), ("encrypted", "")]));
        assert_eq!(second.wanted_mtu(), Some(9000));
        let third = with_mtu(&second, None).unwrap();
        assert_eq!((third.wanted_mtu(), third), (None, overlay(&[("encrypted", "")])));
        let bare = Network::new(NetworkId::for_test(1), NetworkSpec::default());
        assert_eq!(with_mtu(&bare, None).unwrap(), bare);
        assert_eq!(with_mtu(&bare, Some("1400")).unwrap().wanted_mtu(), Some(1400));
    }

    #[test]
    fn networks_of_other_drivers_stay_as_they_were_made() {
        let mut other = overlay(&[]);
        other.spec.driver = Some(Driver { name: "bridge".into(), ..Driver::default() });
        assert!(with_mtu(&other, Some("1400")).unwrap_err().message().contains("back does not span nodes"));
    }
}
