//! The Control API: what clients ask of the cluster (spec wire-behaviour 18).
//!
//! Each call parses its request into `skep-types`, checks it, writes with the version it was decided on, and answers
//! after the commit. Refusals of single fields name the field.

mod adjust;
mod cluster;
mod drivers;
pub(crate) mod errors;
mod explain;
mod filter;
mod in_hand;
mod network;
mod node;
mod payload;
mod service;
mod task;
mod validate;

pub(crate) use self::adjust::NetworkSettingsService;
pub(crate) use self::explain::ExplanationsService;
pub use self::in_hand::{InHand, TakesInHand};
pub(crate) use self::node::certificate_start;
pub use self::node::removal;
use crate::shared::Shared;
use skep_proto::{ToWire as _, v1};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// What clients call.
#[derive(Clone)]
pub(crate) struct ControlService {
    shared: Arc<Shared>,
}

impl ControlService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// Generates the methods of the service: `now` answers from a view, `list` with objects of one (see [`InHand`]), `may` can refuse,
/// `write` commits, `never` is not built.
macro_rules! control {
    (
        now { $($now:ident($now_request:ident) -> $now_response:ident = $now_call:path;)* }
        list { $($list:ident($list_request:ident) -> $list_response:ident.$objects:ident = $list_call:path;)* }
        may { $($may:ident($may_request:ident) -> $may_response:ident = $may_call:path;)* }
        write { $($write:ident($write_request:ident) -> $write_response:ident = $write_call:path;)* }
        never { $($never:ident($never_request:ident) -> $never_response:ident = $what:literal;)* }
    ) => {
        #[tonic::async_trait]
        impl v1::control_server::Control for ControlService {
            $(async fn $now(&self, request: Request<v1::$now_request>) -> Result<Response<v1::$now_response>, Status> {
                Ok(Response::new($now_call(&self.shared, request.into_inner())))
            })*
            $(async fn $list(&self, request: Request<v1::$list_request>) -> Result<Response<v1::$list_response>, Status> {
                let takes_in_hand = request.extensions().get::<TakesInHand>().is_some();
                let found = $list_call(&self.shared, request.into_inner());
                let mut answer = Response::new(v1::$list_response::default());
                if takes_in_hand {
                    answer.extensions_mut().insert(InHand(found));
                } else {
                    answer.get_mut().$objects = found.iter().map(|object| object.to_wire()).collect();
                }
                Ok(answer)
            })*
            $(async fn $may(&self, request: Request<v1::$may_request>) -> Result<Response<v1::$may_response>, Status> {
                $may_call(&self.shared, request.get_ref()).map(Response::new)
            })*
            $(async fn $write(&self, request: Request<v1::$write_request>) -> Result<Response<v1::$write_response>, Status> {
                $write_call(&self.shared, request.into_inner()).await.map(Response::new)
            })*
            $(async fn $never(&self, _: Request<v1::$never_request>) -> Result<Response<v1::$never_response>, Status> {
                Err(Status::unimplemented(concat!($what, " are not supported by this manager")))
            })*
        }
    };
}

control! {
    now {
        list_nodes(ListNodesRequest) -> ListNodesResponse = node::list;
        list_service_statuses(ListServiceStatusesRequest) -> ListServiceStatusesResponse = service::list_statuses;
        list_networks(ListNetworksRequest) -> ListNetworksResponse = network::list;
        list_clusters(ListClustersRequest) -> ListClustersResponse = cluster::list;
        list_secrets(ListSecretsRequest) -> ListSecretsResponse = payload::list_secrets;
        list_configs(ListConfigsRequest) -> ListConfigsResponse = payload::list_configs;
    }
    list {
        list_tasks(ListTasksRequest) -> ListTasksResponse.tasks = task::list;
        list_services(ListServicesRequest) -> ListServicesResponse.services = service::list;
    }
    may {
        get_node(GetNodeRequest) -> GetNodeResponse = node::get;
        get_task(GetTaskRequest) -> GetTaskResponse = task::get;
        get_service(GetServiceRequest) -> GetServiceResponse = service::get;
        get_network(GetNetworkRequest) -> GetNetworkResponse = network::get;
        get_cluster(GetClusterRequest) -> GetClusterResponse = cluster::get;
        get_secret(GetSecretRequest) -> GetSecretResponse = payload::get_secret;
        get_config(GetConfigRequest) -> GetConfigResponse = payload::get_config;
    }
    write {
        update_node(UpdateNodeRequest) -> UpdateNodeResponse = node::update;
        remove_node(RemoveNodeRequest) -> RemoveNodeResponse = node::remove;
        remove_task(RemoveTaskRequest) -> RemoveTaskResponse = task::remove;
        create_service(CreateServiceRequest) -> CreateServiceResponse = service::create;
        update_service(UpdateServiceRequest) -> UpdateServiceResponse = service::update;
        remove_service(RemoveServiceRequest) -> RemoveServiceResponse = service::remove;
        create_network(CreateNetworkRequest) -> CreateNetworkResponse = network::create;
        remove_network(RemoveNetworkRequest) -> RemoveNetworkResponse = network::remove;
        update_cluster(UpdateClusterRequest) -> UpdateClusterResponse = cluster::update;
        create_secret(CreateSecretRequest) -> CreateSecretResponse = payload::create_secret;
        update_secret(UpdateSecretRequest) -> UpdateSecretResponse = payload::update_secret;
        remove_secret(RemoveSecretRequest) -> RemoveSecretResponse = payload::remove_secret;
        create_config(CreateConfigRequest) -> CreateConfigResponse = payload::create_config;
        update_config(UpdateConfigRequest) -> UpdateConfigResponse = payload::update_config;
        remove_config(RemoveConfigRequest) -> RemoveConfigResponse = payload::remove_config;
    }
    never {
        get_extension(GetExtensionRequest) -> GetExtensionResponse = "extensions";
        create_extension(CreateExtensionRequest) -> CreateExtensionResponse = "extensions";
        remove_extension(RemoveExtensionRequest) -> RemoveExtensionResponse = "extensions";
        get_resource(GetResourceRequest) -> GetResourceResponse = "resource objects";
        update_resource(UpdateResourceRequest) -> UpdateResourceResponse = "resource objects";
        list_resources(ListResourcesRequest) -> ListResourcesResponse = "resource objects";
        create_resource(CreateResourceRequest) -> CreateResourceResponse = "resource objects";
        remove_resource(RemoveResourceRequest) -> RemoveResourceResponse = "resource objects";
        create_volume(CreateVolumeRequest) -> CreateVolumeResponse = "cluster volumes (CSI)";
        get_volume(GetVolumeRequest) -> GetVolumeResponse = "cluster volumes (CSI)";
        update_volume(UpdateVolumeRequest) -> UpdateVolumeResponse = "cluster volumes (CSI)";
        list_volumes(ListVolumesRequest) -> ListVolumesResponse = "cluster volumes (CSI)";
        remove_volume(RemoveVolumeRequest) -> RemoveVolumeResponse = "cluster volumes (CSI)";
    }
}
