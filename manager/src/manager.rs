//! Starting, leading, stopping.

use crate::authorize::Door;
use crate::authorize::revoke;
use crate::ca;
use crate::dispatcher::Dispatcher;
use crate::drive::{AddressCounts, DriveError, Term, chain, drive};
use crate::forward::Forwarder;
use crate::health::{CONTROL_API, HealthService, RAFT};
use crate::netstate;
use crate::peers::{self, LeaveError, PeerTransport};
use crate::roles;
use crate::routes::routes;
use crate::settings;
use crate::shared::{ManagerPeer, Shared};
use skep_ca::SecurityConfig;
use skep_store::{Clock, Store};
use skep_types::NodeId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

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
    /// The one that the store was opened with.
    pub transport: Arc<PeerTransport>,
    /// After this time nodes make new keys for encrypted networks; the leader's counts.
    pub tunnel_key_lifetime: Duration,
}

/// A manager: the API of the cluster and, while it leads, the cluster's mind.
pub struct Manager;

impl Manager {
    /// Starts it. It runs until `stop` is cancelled or the handle is dropped.
    #[must_use]
    pub fn start(config: ManagerConfig, stop: &CancellationToken) -> ManagerHandle {
        let stop = stop.child_token();
        config.transport.started(config.store.raft_id());
        let shared = Arc::new(Shared::new(config, stop.clone()));
        let dispatcher = Arc::new(Dispatcher::new(shared.clone()));
        let (health, local_health) = (HealthService::default(), HealthService::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(dispatcher.clone().follow());
        tasks.spawn(netstate::watch_freed(shared.clone()));
        tasks.spawn(settings::follow(shared.clone()));
        let told = dispatcher.clone();
        tasks.spawn(peers::follow(shared.clone(), move || told.managers_changed()));
        tasks.spawn(peers::announce(shared.clone()));
        tasks.spawn(peers::keep_warm(shared.clone()));
        tasks.spawn(revoke::follow(shared.clone()));
        tasks.spawn(follow_leadership(shared.clone(), dispatcher.clone(), [health.clone(), local_health.clone()]));
        let forwarder = Arc::new(Forwarder::new(shared.clone()));
        ManagerHandle { shared, dispatcher, forwarder, health, local_health, stop, tasks }
    }
}

/// A running manager. Dropping it stops it at once; [`Self::stop`] waits for it.
pub struct ManagerHandle {
    shared: Arc<Shared>,
    dispatcher: Arc<Dispatcher>,
    forwarder: Arc<Forwarder>,
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
        routes(&self.shared, &self.dispatcher, &self.forwarder, self.health.clone(), Door::Remote)
    }

    /// The services for the local socket: every caller is a trusted manager. Add `skep.v1` to them.
    #[must_use]
    pub fn local_routes(&self) -> Routes {
        routes(&self.shared, &self.dispatcher, &self.forwarder, self.local_health.clone(), Door::Local)
    }

    /// Takes this manager out of the raft group, for good: the leader is asked, and before that the leadership is given away
    /// if it is here. Its store may be erased afterwards. `force` goes although the rest may be left without a majority.
    ///
    /// # Errors
    /// Why it is still a member.
    pub async fn leave(&self, force: bool) -> Result<(), LeaveError> {
        peers::leave(&self.shared, force).await
    }

    /// Gives the leadership to another manager, if it is here and somebody can take it, so that nothing has to wait for an
    /// election after this manager's end. Returns when somebody else leads or `limit` is over.
    pub async fn hand_over(&self, limit: Duration) {
        let has_others = self.shared.group.members().iter().filter(|member| member.voter).count() > 1;
        if !has_others || !self.shared.store.leadership().borrow().is_leader {
            return;
        }
        match tokio::time::timeout(limit, self.shared.store.hand_over(limit)).await {
            Ok(Ok(leader)) => tracing::info!(leader, "handed over"),
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "nobody took over"),
            Err(_) => tracing::warn!(?limit, "nobody took over in time"),
        }
    }

    /// Resolves when this manager is no member of the raft group any more: it was taken out, or most of the others say so.
    pub fn removed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.shared.group.removed().cancelled_owned()
    }

    /// How long a node may be down, in whole seconds, before its tasks count as lost; a day unless this is called.
    pub fn set_orphan_after(&self, period: Duration) {
        self.shared.orphan_after.store(period.as_secs(), Ordering::Relaxed);
    }

    /// What audits of addresses found while this manager led.
    #[must_use]
    pub fn addresses(&self) -> Arc<AddressCounts> {
        self.shared.addresses.clone()
    }

    /// All managers with a vote, this one included.
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

/// One term. Returns when a loop failed, after a pause.
async fn lead(shared: &Arc<Shared>, dispatcher: &Arc<Dispatcher>, stop: &CancellationToken) {
    let stop_on_drop = stop.clone().drop_guard();
    tracing::info!(node = %shared.local.id, "this manager leads");
    skep_failpoint::failpoint!("manager.leader.began");
    let term = Term { stop: stop.clone() };
    let mut loops = JoinSet::new();
    loops.spawn(dispatcher.clone().run(term.clone()));
    loops.spawn(drive(shared.clone(), term.clone()));
    loops.spawn(netstate::run(shared.clone(), term.clone()));
    loops.spawn(ca::run(shared.clone(), term.clone()));
    loops.spawn(roles::run(shared.clone(), term));
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
