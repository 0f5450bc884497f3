//! Which services are behind which door, and who answers them.

use crate::authorize::revoke::Revocations;
use crate::authorize::{Authorized, Door, Facts, Guard};
use crate::ca::{CaService, CertificatesService};
use crate::control::{ControlService, ExplanationsService, NetworkSettingsService};
use crate::dispatcher::{Dispatcher, DispatcherService};
use crate::forward::{Forwarded, Forwarder};
use crate::health::HealthService;
use crate::logs::LogService;
use crate::netstate::NetworkStateService;
use crate::peers::{MAX_RAFT_MESSAGE, MembershipService, RaftService};
use crate::resource::ResourceService;
use crate::shared::Shared;
use crate::tunnels::TunnelService;
use crate::watch::WatchService;
use skep_proto::skep::certificates_server::CertificatesServer;
use skep_proto::skep::explanations_server::ExplanationsServer;
use skep_proto::skep::network_settings_server::NetworkSettingsServer;
use skep_proto::skep::network_state_server::NetworkStateServer;
use skep_proto::skep::tunnels_server::TunnelsServer;
use skep_proto::skep::{membership_server::MembershipServer, raft_server::RaftServer};
use skep_proto::v1;
use std::sync::Arc;
use tonic::service::Routes;

/// Requests of clients and agents are at most this long (spec wire-behaviour 2.1).
const MAX_REQUEST: usize = 4 << 20;

/// The services of one door. The store of every manager answers `Watch`, `Health` and `Raft`; all else is for the leader.
pub(crate) fn routes(
    shared: &Arc<Shared>,
    dispatcher: &Arc<Dispatcher>,
    forwarder: &Arc<Forwarder>,
    health: HealthService,
    door: Door,
) -> Routes {
    let facts: Arc<dyn Facts> = shared.clone();
    let revocations: Arc<Revocations> = shared.revocations.clone();
    let guard = Guard { facts, revocations, door };
    let shared = || shared.clone();
    let (ca, logs) = (CaService::new(shared()), LogService::new(shared()));
    let mut routes = Routes::builder();
    macro_rules! here {
        ($server:expr) => {
            routes.add_service(Authorized::new(
                $server.max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(usize::MAX),
                guard.clone(),
            ))
        };
    }
    macro_rules! leader {
        ($server:expr) => {
            routes.add_service(Authorized::new(
                Forwarded::new(
                    $server.max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(usize::MAX),
                    forwarder.clone(),
                    door,
                ),
                guard.clone(),
            ))
        };
    }
    leader!(v1::ca_server::CaServer::new(ca.clone()));
    leader!(v1::node_ca_server::NodeCaServer::new(ca));
    leader!(v1::control_server::ControlServer::new(ControlService::new(shared())));
    leader!(v1::dispatcher_server::DispatcherServer::new(DispatcherService::new(dispatcher.clone())));
    leader!(v1::logs_server::LogsServer::new(logs.clone()));
    leader!(v1::log_broker_server::LogBrokerServer::new(logs));
    leader!(v1::resource_allocator_server::ResourceAllocatorServer::new(ResourceService::new(shared())));
    leader!(NetworkStateServer::new(NetworkStateService::new(shared())));
    leader!(NetworkSettingsServer::new(NetworkSettingsService::new(shared())));
    leader!(TunnelsServer::new(TunnelService::new(shared())));
    leader!(ExplanationsServer::new(ExplanationsService::new(shared())));
    here!(v1::watch_server::WatchServer::new(WatchService::new(shared())));
    here!(v1::health_server::HealthServer::new(health));
    if door == Door::Local {
        // Whoever comes this way may: it has no rule and no other door.
        routes.add_service(CertificatesServer::new(CertificatesService::new(shared())).max_decoding_message_size(MAX_REQUEST));
    }
    if door == Door::Remote {
        leader!(MembershipServer::new(MembershipService::new(shared())));
        let raft = RaftServer::new(RaftService::new(shared()));
        let raft = raft.max_decoding_message_size(MAX_RAFT_MESSAGE).max_encoding_message_size(MAX_RAFT_MESSAGE);
        routes.add_service(Authorized::new(raft, guard.clone()));
    }
    routes.routes()
}
