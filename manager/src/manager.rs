//! Starting, leading, stopping.

use crate::authorize::{Authorized, Door, Facts};
use crate::ca::{self, CaService};
use crate::control::ControlService;
use crate::dispatcher::{Dispatcher, DispatcherService};
use crate::drive::{DriveError, Term, chain, drive};
use crate::health::{CONTROL_API, HealthService, RAFT};
use crate::logs::{Broker, LogService};
use crate::resource::ResourceService;
use crate::shared::{Local, ManagerPeer, Shared};
use crate::watch::WatchService;
use arc_swap::ArcSwap;
use skep_ca::SecurityConfig;
use skep_proto::v1;
use skep_store::{Clock, Store};
use skep_types::{ManagerStatus, NodeId, Reachability};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Requests of clients and agents are at most this long (spec wire-behaviour 2.1).
const MAX_REQUEST: usize = 4 << 20;
/// A term that failed while this manager still leads is begun again after this time.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// What a manager needs from the one who starts it.
pub struct ManagerConfig {
    /// Opened, with [`initial_objects`](crate::initial_objects) in it or about to come.
    pub store: Store,
    pub security: SecurityConfig,
    /// The node this manager runs on.
    pub node_id: NodeId,
    /// How agents and other managers reach this manager.
    pub advertise_addr: SocketAddr,
    pub clock: Clock,
}

/// A manager: the API of the cluster and, while it leads, the cluster's mind.
pub struct Manager;

impl Manager {
    /// Starts it. It runs until `stop` is cancelled or the handle is dropped.
    #[must_use]
    pub fn start(config: ManagerConfig, stop: &CancellationToken) -> ManagerHandle {
        let stop = stop.child_token();
        let this = this_manager(&config);
        let shared = Arc::new(Shared {
            store: config.store,
            security: config.security,
            clock: config.clock,
            local: Local { id: config.node_id, addr: config.advertise_addr.ip() },
            broker: Broker::default(),
            managers: ArcSwap::from_pointee(vec![this]),
            stop: stop.clone(),
        });
        let dispatcher = Arc::new(Dispatcher::new(shared.clone()));
        let (health, local_health) = (HealthService::default(), HealthService::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_leadership(shared.clone(), dispatcher.clone(), [health.clone(), local_health.clone()]));
        ManagerHandle { shared, dispatcher, health, local_health, stop, tasks }
    }
}

fn this_manager(config: &ManagerConfig) -> ManagerPeer {
    let addr = config.advertise_addr.to_string();
    let status =
        ManagerStatus { raft_id: config.store.raft_id(), addr: addr.clone(), leader: false, reachability: Reachability::Reachable };
    ManagerPeer { node: config.node_id.clone(), addr, status }
}

/// A running manager. Dropping it stops it at once; [`Self::stop`] waits for it.
pub struct ManagerHandle {
    shared: Arc<Shared>,
    dispatcher: Arc<Dispatcher>,
    health: HealthService,
    local_health: HealthService,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Drop for ManagerHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ManagerHandle {
    /// The services for the TCP port: callers have the rights of their certificates.
    #[must_use]
    pub fn remote_routes(&self) -> Routes {
        self.routes(Door::Remote, self.health.clone())
    }

    /// The services for the local socket: every caller is a trusted manager. Add `skep.v1` to them.
    #[must_use]
    pub fn local_routes(&self) -> Routes {
        self.routes(Door::Local, self.local_health.clone())
    }

    fn routes(&self, door: Door, health: HealthService) -> Routes {
        let facts: Arc<dyn Facts> = self.shared.clone();
        let shared = || self.shared.clone();
        let (ca, logs) = (CaService::new(shared()), LogService::new(shared()));
        macro_rules! routes {
            ($($module:ident::$server:ident($service:expr)),* $(,)?) => {
                Routes::builder()$(.add_service(Authorized::new(
                    v1::$module::$server::new($service).max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(usize::MAX),
                    facts.clone(),
                    door,
                )))*.clone().routes()
            };
        }
        routes![
            ca_server::CaServer(ca.clone()),
            node_ca_server::NodeCaServer(ca),
            control_server::ControlServer(ControlService::new(shared())),
            dispatcher_server::DispatcherServer(DispatcherService::new(self.dispatcher.clone())),
            logs_server::LogsServer(logs.clone()),
            log_broker_server::LogBrokerServer(logs),
            resource_allocator_server::ResourceAllocatorServer(ResourceService),
            watch_server::WatchServer(WatchService::new(shared())),
            health_server::HealthServer(health),
        ]
    }

    /// All managers, this one included, as agents are to be told. Never empty.
    pub fn set_managers(&self, managers: Vec<ManagerPeer>) {
        if managers.is_empty() {
            tracing::error!("an empty list of managers was not taken: agents would forget all of them");
            return;
        }
        self.shared.managers.store(Arc::new(managers));
        self.dispatcher.managers_changed();
    }

    #[must_use]
    pub fn managers(&self) -> Vec<ManagerPeer> {
        self.shared.managers()
    }

    /// Ends all streams and loops, and waits for them.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Runs the leader's loops whenever this manager leads.
async fn follow_leadership(shared: Arc<Shared>, dispatcher: Arc<Dispatcher>, health: [HealthService; 2]) {
    let mut leadership = shared.store.leadership();
    loop {
        let now = leadership.borrow_and_update().clone();
        for health in &health {
            health.set(RAFT, now.leader.is_some());
            health.set(CONTROL_API, now.leader.is_some());
        }
        mark_leader(&shared, now.is_leader);
        dispatcher.managers_changed();
        let stop = shared.stop.child_token();
        let leading = async { if now.is_leader { lead(&shared, &dispatcher, &stop).await } else { std::future::pending().await } };
        tokio::select! {
            () = shared.stop.cancelled() => {}
            changed = leadership.changed() => if changed.is_err() {
                return;
            },
            () = leading => continue,
        }
        // Dropping the term's future aborted its loops; nothing of them is left.
        if shared.stop.is_cancelled() {
            return;
        }
    }
}

fn mark_leader(shared: &Shared, leads: bool) {
    let mut managers = shared.managers();
    for manager in managers.iter_mut().filter(|manager| manager.node == shared.local.id) {
        manager.status.leader = leads;
    }
    shared.managers.store(Arc::new(managers));
}

/// One term. Returns when a loop failed, after a pause.
async fn lead(shared: &Arc<Shared>, dispatcher: &Arc<Dispatcher>, stop: &CancellationToken) {
    let stop_on_drop = stop.clone().drop_guard();
    tracing::info!(node = %shared.local.id, "this manager leads");
    skep_failpoint::failpoint!("manager.leader.began");
    let term = Term { stop: stop.clone() };
    let mut loops = JoinSet::new();
    loops.spawn(dispatcher.clone().run(term.clone()));
    loops.spawn(drive(shared.clone(), term.clone()));
    loops.spawn(ca::sign(shared.clone(), term));
    while let Some(ended) = loops.join_next().await {
        // The first to end takes the others with it.
        stop.cancel();
        if let Err(error) = ended.unwrap_or(Err(DriveError::Panicked("leader"))) {
            tracing::warn!(error = %chain(&error), "a loop of the leader ended");
        }
    }
    drop(stop_on_drop);
    tokio::time::sleep(RESTART_PAUSE).await;
}
