//! The daemon: starting, serving requests about this node's life, stopping.
//!
//! Tasks it owns: the local socket's server; while the node is in a cluster, everything of [`Swarm`]; the watchdog; this
//! loop itself, which is the only one that starts and ends a [`Swarm`]. Channel: 16 orders; callers wait when it is full.

use crate::config::Config;
use crate::local::{LocalNodeService, Order, wire_time};
use crate::router::Routes;
use crate::state::NodeFile;
use crate::swarm::{NodeParts, Swarm};
use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use skep_ca::SecurityConfig;
use skep_proto::skep::local_images_server::LocalImagesServer;
use skep_proto::skep::local_node_server::LocalNodeServer;
use skep_proto::skep::{InitRequest, InitResponse, LeaveRequest, LeaveResponse, StatusResponse};
use skep_systemd::{Notifier, watchdog, watchdog_period};
use skep_types::NodeRole;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;

const NOT_IN_A_SWARM: &str = "this node is not a manager of a swarm; make one with `swarmctl cluster init`, or ask a manager";

/// How often the main loop proves to the watchdog that it turns.
const PULSE: Duration = Duration::from_secs(2);

/// Runs until SIGTERM or SIGINT; tasks go on after it.
///
/// # Errors
/// If the node cannot do its work: directories, sockets, a damaged store. The text says what to do.
pub async fn run(config: Config) -> Result<()> {
    let _lock = take_directories(&config)?;
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let notifier = Notifier::from_env();
    let config = Arc::new(config);
    let security = load_security(&config.data_dir)?;
    let parts = NodeParts::start(&config, &security)?;

    let routes = Routes::default();
    let (orders, mut inbox) = mpsc::channel(16);
    let local = tonic::service::Routes::from(routes.router(NOT_IN_A_SWARM))
        .add_service(LocalNodeServer::new(LocalNodeService::new(orders)))
        .add_service(LocalImagesServer::new(parts.image_service()).max_decoding_message_size(4 << 20));
    let listener = skep_ca::bind_local(&config.socket()).with_context(|| format!("cannot listen on {}", config.socket().display()))?;
    let mut servers = JoinSet::new();
    servers.spawn(skep_manager::serve(skep_ca::serve_local(listener, &security), local, stop.clone()));
    let turning = Arc::new(AtomicBool::new(true));
    let pulse = Arc::clone(&turning);
    let watching = tokio::spawn(watchdog(notifier.clone(), watchdog_period(), move || pulse.swap(false, Ordering::Relaxed), stop.clone()));

    let mut daemon = Daemon { config, security, parts, routes, swarm: None, started_at: SystemTime::now() };
    daemon.parts.sweep().await;
    daemon.resume().await?;
    notifier.ready(daemon.summary());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %daemon.config.socket().display(), "ready");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut pulse = tokio::time::interval(PULSE);
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = pulse.tick() => turning.store(true, Ordering::Relaxed),
            order = inbox.recv() => match order {
                Some(order) => {
                    daemon.obey(order).await;
                    notifier.status(daemon.summary());
                }
                None => break Err(anyhow!("the local socket's service ended")),
            },
            ended = servers.join_next() => break Err(match ended {
                Some(Ok(Err(error))) => anyhow!(error).context("the local socket's server ended"),
                _ => anyhow!("the local socket's server ended"),
            }),
            reason = daemon.swarm_ended() => break Err(reason),
        }
    };
    notifier.stopping("leaving tasks running");
    tracing::info!("stopping; tasks go on");
    if let Some(swarm) = daemon.swarm.take() {
        swarm.stop().await;
    }
    stop.cancel();
    while servers.join_next().await.is_some() {}
    let _ = watching.await;
    outcome
}

/// Makes both directories for root alone and locks the data directory against a second daemon.
fn take_directories(config: &Config) -> Result<Flock<File>> {
    for dir in [&config.data_dir, &config.run_dir] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)))
            .with_context(|| format!("cannot make {} and make it private", dir.display()))?;
    }
    let path = config.data_dir.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow!("another skepd uses {}; stop it, or give this one directories of its own", config.data_dir.display()))
}

fn load_security(data_dir: &Path) -> Result<SecurityConfig> {
    let dir = data_dir.join("identity");
    let security = match skep_ca::files::load(&dir, SystemTime::now())? {
        Some(identity) => SecurityConfig::new(identity)?,
        None => SecurityConfig::without_identity()?,
    };
    Ok(security)
}

struct Daemon {
    config: Arc<Config>,
    security: SecurityConfig,
    parts: NodeParts,
    routes: Routes,
    swarm: Option<Swarm>,
    started_at: SystemTime,
}

impl Daemon {
    /// Goes on where the last start ended: in the cluster, or clearing away an initialisation or a leaving that was cut short.
    async fn resume(&mut self) -> Result<()> {
        let node = NodeFile::load(&self.config.data_dir)?;
        match (node, self.security.identity()) {
            (Some(node), Some(_)) => {
                let swarm = Swarm::open(&self.config, &self.security, &self.parts, node).await?;
                self.adopt(swarm);
            }
            (Some(_), None) => bail!(
                "{} says that this node is in a cluster, but its certificate is missing from {}; restore the directory from a backup, or remove both and join again",
                self.config.data_dir.join("node.json").display(),
                self.config.data_dir.join("identity").display()
            ),
            // node.json is written last and removed first: without it, the rest is debris.
            (None, _) => {
                if let Some(identity) = &self.security.identity() {
                    tracing::info!(node = %identity.node_id(), "clearing away a cluster that was made or left half-way");
                }
                self.parts.agent(None).clear().await;
                self.forget()?;
            }
        }
        Ok(())
    }

    fn adopt(&mut self, swarm: Swarm) {
        self.routes.set(swarm.local_routes());
        self.swarm = Some(swarm);
    }

    /// Resolves when something of the swarm ended that should not have; never while there is none.
    async fn swarm_ended(&mut self) -> anyhow::Error {
        match &mut self.swarm {
            Some(swarm) => swarm.ended().await,
            None => std::future::pending().await,
        }
    }

    async fn obey(&mut self, order: Order) {
        // A caller that went away does not want to know any more.
        match order {
            Order::Status(reply) => drop(reply.send(self.status())),
            Order::Init(request, reply) => drop(reply.send(self.init(request).await)),
            Order::Leave(request, reply) => drop(reply.send(self.leave(&request).await)),
        }
    }

    async fn init(&mut self, request: InitRequest) -> Result<InitResponse, Status> {
        if self.swarm.is_some() {
            return Err(Status::failed_precondition("this node is in a swarm already; `swarmctl cluster leave` takes it out"));
        }
        self.forget().map_err(|error| Status::internal(format!("{error:#}")))?;
        match Swarm::found(&self.config, &self.security, &self.parts, request).await {
            Ok((swarm, response)) => {
                self.adopt(swarm);
                Ok(response)
            }
            Err(error) => {
                if let Err(debris) = self.forget() {
                    tracing::warn!(error = %format!("{debris:#}"), "could not clear away a swarm that was not made");
                }
                Err(refusal(&error))
            }
        }
    }

    async fn leave(&mut self, request: &LeaveRequest) -> Result<LeaveResponse, Status> {
        let Some(swarm) = &self.swarm else {
            return Err(Status::failed_precondition("this node is in no swarm"));
        };
        if swarm.is_last_manager() && !request.force {
            return Err(Status::failed_precondition(
                "this node is the last manager: leaving loses the cluster's state, its services and its secrets; repeat with --force if that is meant",
            ));
        }
        let swarm = self.swarm.take().expect("was there a moment ago");
        self.routes.clear();
        // Removed first: a crash from here on ends with a node that is in no cluster.
        NodeFile::remove(&self.config.data_dir).map_err(|error| Status::internal(format!("{error:#}")))?;
        skep_failpoint::failpoint!("skepd.leave.forgotten");
        swarm.leave().await;
        self.parts.agent(None).clear().await;
        self.forget().map_err(|error| Status::internal(format!("{error:#}")))?;
        tracing::info!("left the cluster");
        Ok(LeaveResponse {})
    }

    /// Removes identity and cluster state. Repeats without harm.
    fn forget(&self) -> Result<()> {
        skep_ca::files::remove(&self.config.data_dir.join("identity"))?;
        skep_failpoint::failpoint!("skepd.forget.identity");
        let raft = self.config.data_dir.join("raft");
        match std::fs::remove_dir_all(&raft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", raft.display()));
            }
            _ => {}
        }
        self.security.clear()?;
        Ok(())
    }

    fn summary(&self) -> &'static str {
        match self.security.identity().map(|identity| identity.role()) {
            Some(NodeRole::Manager) => "manager",
            Some(NodeRole::Worker) => "worker",
            None => "in no swarm",
        }
    }

    fn status(&self) -> StatusResponse {
        let identity = self.security.identity();
        let mut status = StatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            role: skep_proto::skep::status_response::Role::from(identity.as_ref().map(|identity| identity.role())) as i32,
            started_at: Some(wire_time(self.started_at)),
            certificate_expires_at: identity.as_ref().map(|identity| wire_time(identity.not_after())),
            ..StatusResponse::default()
        };
        if let (Some(swarm), Some(identity)) = (&self.swarm, identity) {
            status.node_id = identity.node_id().to_string();
            status.cluster_id = identity.cluster_id().to_string();
            swarm.describe(&mut status);
        }
        status
    }
}

/// What a person did wrong is INVALID_ARGUMENT; the rest is ours.
fn refusal(error: &anyhow::Error) -> Status {
    let text = format!("{error:#}");
    match error.downcast_ref::<crate::swarm::BadRequest>() {
        Some(_) => Status::invalid_argument(text),
        None => Status::internal(text),
    }
}
