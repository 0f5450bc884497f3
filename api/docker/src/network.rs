//! `/networks`: those of the cluster, and the three that every node has for itself.

mod detail; // who is on a network

use crate::body::{Json, with_status};
use crate::container::{find as find_container, place};
use crate::filters::Filters;
use crate::query::Query;
use crate::types::create::EndpointConfig;
use crate::types::network::{CreateRequest, Created, Network, is_predefined_name, predefined};
use crate::{ApiError, ApiVersion, Backend, ErrorKind, Select, SwarmState, lookup, when};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use skep_types::Network as ClusterNetwork;

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

const FILTERS: &[&str] = &["id", "name", "driver", "scope", "type", "label", "dangling"];

impl lookup::Named for Network {
    const KIND: &'static str = "network";

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Those of the cluster. Where this node is no manager, those that its containers are on, as with dockerd's workers.
async fn of_cluster(backend: &Backend) -> Result<Vec<ClusterNetwork>, ApiError> {
    let networks = match backend.node.swarm().await.is_manager {
        true => backend.cluster.list_networks(&Select::default()).await?,
        false => backend.containers.networks().await?.iter().map(|here| (*here.network).clone()).collect(),
    };
    Ok(networks.into_iter().filter(|network| !network.is_predefined()).collect())
}

fn shown(mut network: Network, version: ApiVersion) -> Network {
    if version < ApiVersion::v1(47) {
        network.enable_ipv4 = None;
    }
    network
}

async fn list(State(backend): State<Backend>, version: ApiVersion, query: Query) -> Result<Json<Vec<Network>>, ApiError> {
    let filters = query.filters(FILTERS)?;
    for (key, words) in [("scope", &["swarm", "local", "global"][..]), ("type", &["custom", "builtin"])] {
        if let Some(odd) = filters.values(key).iter().find(|value| !words.contains(&value.as_str())) {
            return Err(ApiError::invalid(format!("invalid filter '{key}={odd}'")));
        }
    }
    let dangling = filters.flag("dangling")?;
    let networks = of_cluster(&backend).await?;
    let used = match dangling {
        Some(_) => detail::used(&backend).await?,
        None => Default::default(),
    };
    let all = predefined().into_iter().chain(networks.iter().map(Network::from));
    let wanted = all.filter(|network| {
        let is_used = network.scope == "local" || used.contains(&network.id);
        is_wanted(&filters, network) && dangling.is_none_or(|dangling| dangling != is_used)
    });
    Ok(Json(wanted.map(|network| shown(network, version)).collect()))
}

fn is_wanted(filters: &Filters, network: &Network) -> bool {
    // The network of published ports counts as made by somebody, as by dockerd.
    let kind = if network.scope == "local" { "builtin" } else { "custom" };
    filters.part_of("id", &network.id)
        && filters.part_of("name", &network.name)
        && filters.is("driver", &network.driver)
        && filters.is("scope", network.scope)
        && filters.is("type", kind)
        && filters.labels("label", network.labels.as_ref().unwrap_or(&Default::default()))
}

async fn inspect(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Result<Json<Network>, ApiError> {
    let verbose = query.strict("verbose")?;
    if query.text("scope") == Some("swarm") && is_predefined_name(&id) && backend.node.swarm().await.is_manager {
        // The cluster has objects of its own for these, which services are put on.
        let objects = backend.cluster.list_networks(&Select { names: vec![id.clone()], ..Select::default() }).await?;
        let object = objects.iter().find(|network| network.spec.annotations.name == id);
        return object
            .map(|network| Json(shown(network.into(), version)))
            .ok_or_else(|| ApiError::not_found(format!("network {id} not found")));
    }
    let networks = of_cluster(&backend).await?;
    let local = predefined().into_iter().filter(|_| query.text("scope") != Some("swarm"));
    let of_swarm = networks.iter().map(Network::from).filter(|_| query.text("scope") != Some("local"));
    let mut network = lookup::pick(&local.chain(of_swarm).collect::<Vec<_>>(), &id)?;
    if let Some(object) = networks.iter().find(|object| object.id.as_str() == network.id) {
        detail::fill(&backend, object, &mut network, verbose).await?;
    }
    Ok(Json(shown(network, version)))
}

async fn create(State(backend): State<Backend>, Json(mut request): Json<CreateRequest>) -> Result<Response, ApiError> {
    if request.name.is_empty() {
        return Err(ApiError::invalid("invalid network name: name is empty"));
    }
    if is_predefined_name(&request.name) {
        return Err(ApiError::forbidden(format!("operation is not permitted on predefined {} network ", request.name)));
    }
    if request.driver.is_empty() {
        request.driver = "bridge".into();
    }
    let is_local = match (request.scope.as_str(), request.driver.as_str()) {
        ("swarm", _) | ("", "overlay") => false,
        ("" | "local", _) => true,
        (scope, _) => return Err(ApiError::invalid(format!("invalid scope {scope:?}; use \"swarm\""))),
    };
    if matches!(request.driver.as_str(), "host" | "null") {
        return Err(ApiError::forbidden(format!("only one instance of \"{}\" network is allowed", request.driver)));
    }
    if let Some(refusal) = backend.node.swarm().await.refusal().filter(|_| !is_local) {
        return Err(refusal);
    }
    if of_cluster(&backend).await?.iter().any(|network| network.spec.annotations.name == request.name) {
        return Err(ApiError::conflict(format!("network with name {} already exists", request.name)));
    }
    if is_local {
        return Err(ApiError::unimplemented(format!(
            "networks of one node alone are not supported; make one of the swarm: -d overlay, or --scope swarm with driver {:?}",
            request.driver
        )));
    }
    let network = backend.cluster.create_network(request.into_spec()?).await?;
    Ok(with_status(StatusCode::CREATED, &Created { id: network.id.to_string(), warning: String::new() }))
}

/// The network of the cluster that is meant, for calls that change something.
async fn changeable(backend: &Backend, state: &SwarmState, wanted: &str) -> Result<ClusterNetwork, ApiError> {
    if let Some(own) = predefined().iter().find(|network| network.id == wanted || network.name == wanted) {
        return Err(ApiError::forbidden(format!("operation is not permitted on predefined {} network ", own.name)));
    }
    if !state.is_manager {
        // What it has of the cluster's networks is not its own to change.
        return Err(ApiError::not_found(format!("network {wanted} not found")));
    }
    lookup::network(backend, wanted).await
}

async fn remove(State(backend): State<Backend>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let network = changeable(&backend, &backend.node.swarm().await, &id).await?;
    if network.is_predefined() {
        let name = &network.spec.annotations.name;
        return Err(ApiError::forbidden(format!("{name} is a pre-defined network and cannot be removed")));
    }
    backend.cluster.remove_network(network.id.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize)]
struct Pruned {
    #[serde(rename = "NetworksDeleted")]
    deleted: Option<Vec<String>>,
}

async fn prune(State(backend): State<Backend>, query: Query) -> Result<Json<Pruned>, ApiError> {
    let filters = query.filters(&["until", "label", "label!"])?;
    let before = match filters.values("until") {
        [] => None,
        [text] => Some(when::moment(text, when::now())?),
        _ => return Err(ApiError::invalid("more than one until filter specified")),
    };
    let is_manager = backend.node.swarm().await.is_manager;
    let used = detail::used(&backend).await?;
    let mut deleted = Vec::new();
    // Those of the cluster are not a worker's to remove.
    for network in if is_manager { of_cluster(&backend).await? } else { Vec::new() } {
        let labels = &network.spec.annotations.labels;
        let is_unwanted = filters.labels("label", labels)
            && (!filters.has("label!") || !filters.labels("label!", labels))
            && before.is_none_or(|before| network.meta.created_at <= before);
        if !is_unwanted || crate::types::network::is_ingress(&network) || used.contains(network.id.as_str()) {
            continue;
        }
        match backend.cluster.remove_network(network.id.as_str()).await {
            Ok(()) => deleted.push(network.spec.annotations.name.clone()),
            // Somebody uses or removed it meanwhile.
            Err(error) if matches!(error.kind, ErrorKind::FailedPrecondition | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Json(Pruned { deleted: (!deleted.is_empty()).then_some(deleted) }))
}

/// A container and its place on the network.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConnectRequest {
    container: String,
    endpoint_config: Option<EndpointConfig>,
}

/// `Force` also takes off what is only remembered: here nothing is remembered that is not there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DisconnectRequest {
    container: String,
}

/// The network as containers name it: by its name, where this node can know it. On a worker it shows when managers are asked.
async fn for_containers(backend: &Backend, wanted: &str, is_new: bool) -> Result<String, ApiError> {
    let networks: Vec<Network> = predefined().into_iter().chain(of_cluster(backend).await?.iter().map(Network::from)).collect();
    let network = match lookup::pick(&networks, wanted) {
        Err(error) if error.kind == ErrorKind::NotFound && !backend.node.swarm().await.is_manager => return Ok(wanted.to_owned()),
        found => found?,
    };
    if is_new && network.scope == "swarm" && !network.attachable {
        return Err(ApiError::forbidden(format!(
            "Could not attach to network {wanted}: rpc error: code = PermissionDenied desc = network {wanted} not manually attachable"
        )));
    }
    match network.name.as_str() {
        "host" => Err(ApiError::forbidden("container cannot be disconnected from host network or connected to host network")),
        "none" if is_new => {
            Err(ApiError::forbidden("container cannot be connected to multiple networks with one of the networks in private (none) mode"))
        }
        name => Ok(name.to_owned()),
    }
}

/// The container that is meant, which must not be a task's: its networks are its service's.
async fn plain_container(backend: &Backend, wanted: &str) -> Result<String, ApiError> {
    let container = find_container(backend, wanted).await?;
    match container.is_task {
        false => Ok(container.id),
        true => Err(ApiError::unimplemented(
            "the networks of a task's container are its service's: `docker service update --network-add` and `--network-rm`",
        )),
    }
}

async fn connect(State(backend): State<Backend>, Path(id): Path<String>, Json(request): Json<ConnectRequest>) -> Result<(), ApiError> {
    let network = for_containers(&backend, &id, true).await?;
    let wish = place(&network, &request.endpoint_config.unwrap_or_default())?;
    let container = plain_container(&backend, &request.container).await?;
    backend.containers.connect(&container, wish).await
}

async fn disconnect(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    Json(request): Json<DisconnectRequest>,
) -> Result<(), ApiError> {
    let network = for_containers(&backend, &id, false).await?;
    let container = plain_container(&backend, &request.container).await?;
    backend.containers.disconnect(&container, &network).await
}
