//! Everything that runs while the node is in a cluster: the manager, the cluster port, the agent.

use crate::address;
use crate::agent::{AgentKeeper, AgentParts, chain};
use crate::config::Config;
use crate::state::NodeFile;
use anyhow::{Context, Result, anyhow};
use rand::RngCore;
use skep_agent::NodeImages;
use skep_ca::{Identity, RootCa, SecurityConfig};
use skep_images::{ImageStore, RegistryConfig};
use skep_manager::{Manager, ManagerConfig, ManagerHandle, NewCluster, initial_objects};
use skep_netlb::Netlb;
use skep_proto::skep::{InitRequest, InitResponse, StatusResponse};
use skep_store::{Alone, Member, Store, StoreConfig, StoreError, system_clock};
use skep_types::{Availability, ClusterId, NetworkId, NodeId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the caller of `init` asked for cannot be.
#[derive(Debug, thiserror::Error)]
#[error("the request cannot be carried out")]
pub struct BadRequest(#[source] anyhow::Error);

/// What the node has whether or not it is in a cluster: images and network.
pub struct NodeParts {
    config: Arc<Config>,
    security: SecurityConfig,
    images: ImageStore,
    network: Netlb,
}

impl NodeParts {
    pub fn start(config: &Arc<Config>, security: &SecurityConfig) -> Result<Self> {
        let registries = RegistryConfig { insecure: config.insecure_registries.clone() };
        let images = ImageStore::connect_with(&config.containerd, &config.containerd_namespace, registries)?;
        let instance = config.run_dir.to_string_lossy().into_owned();
        let network = Netlb::start(skep_netlb::Config { run_dir: config.run_dir.clone(), instance })?;
        Ok(Self { config: Arc::clone(config), security: security.clone(), images, network })
    }

    pub fn image_service(&self) -> NodeImages {
        NodeImages::new(self.images.clone())
    }

    /// Leases of pulls that a crash cut short. containerd may not be there yet; then they expire by themselves.
    pub async fn sweep(&self) {
        if let Err(error) = self.images.sweep().await {
            tracing::debug!(error = %chain(&error), "leases of earlier pulls stay until they expire");
        }
    }

    pub fn agent(&self, local_manager: Option<String>) -> AgentParts {
        AgentParts {
            config: Arc::clone(&self.config),
            security: self.security.clone(),
            images: self.images.clone(),
            network: self.network.clone(),
            local_manager,
        }
    }
}

/// The parts that run while the node is in a cluster. One owner: the daemon's loop.
pub struct Swarm {
    node: NodeFile,
    store: Store,
    manager: ManagerHandle,
    agent: AgentKeeper,
    servers: JoinSet<Result<()>>,
    stop: CancellationToken,
}

impl Swarm {
    /// Makes a new cluster with this node as its first manager. `node.json` is written last: before it, nothing counts.
    ///
    /// # Errors
    /// [`BadRequest`] for what the caller can cure.
    pub async fn found(
        config: &Arc<Config>,
        security: &SecurityConfig,
        parts: &NodeParts,
        request: InitRequest,
    ) -> Result<(Self, InitResponse)> {
        let wanted = Wanted::parse(&request, config).map_err(BadRequest)?;
        // Before anything is written: a port that is taken is said now.
        let listener = bind(wanted.listen).await.map_err(BadRequest)?;
        let mut random = rand::rng();
        let (cluster_id, node_id) = (ClusterId::from_random(bytes(&mut random)), NodeId::from_random(bytes(&mut random)));
        let now = SystemTime::now();
        let root = RootCa::generate(now)?;
        let identity = Identity::of_first_manager(&root, node_id.clone(), cluster_id.clone(), wanted.lifetime, now)?;
        let raft_id = u64::from_le_bytes(bytes(&mut random)) | 1;
        let member = Member { node_id: node_id.to_string(), addr: wanted.advertise.to_string() };
        let objects = initial_objects(NewCluster {
            cluster_id: cluster_id.clone(),
            root: &root,
            worker_secret: bytes(&mut random),
            manager_secret: bytes(&mut random),
            node_id: node_id.clone(),
            node_certificate: identity.chain_pem().into_bytes(),
            availability: wanted.availability,
            description: None,
            network_ids: std::array::from_fn(|_| NetworkId::from_random(bytes(&mut random))),
            default_address_pool: request.default_address_pool,
            subnet_size: request.subnet_size,
            vxlan_port: 0,
            node_cert_expiry: Some(wanted.lifetime),
            auto_lock_managers: false,
        });
        let store = Store::bootstrap(StoreConfig::new(config.data_dir.join("raft")), raft_id, member, Arc::new(Alone)).await?;
        skep_failpoint::failpoint!("skepd.init.store");
        store.propose(objects).await.context("cannot write the new cluster's first objects")?;
        skep_failpoint::failpoint!("skepd.init.objects");
        skep_ca::files::save(&config.data_dir.join("identity"), &identity)?;
        security.install(identity)?;
        skep_failpoint::failpoint!("skepd.init.identity");
        let node = NodeFile { listen_addr: wanted.listen, advertise_addr: wanted.advertise, raft_id };
        node.save(&config.data_dir)?;
        skep_failpoint::failpoint!("skepd.init.done");
        let tokens = skep_types::ClusterView::cluster(&store.view()).map(|cluster| cluster.root_ca.join_tokens.clone()).unwrap_or_default();
        let swarm = Self::run(security, parts, node, store, listener).await?;
        tracing::info!(cluster = %cluster_id, node = %node_id, "made a cluster");
        let response = InitResponse {
            node_id: node_id.to_string(),
            cluster_id: cluster_id.to_string(),
            worker_token: tokens.worker.0,
            manager_token: tokens.manager.0,
            advertise_addr: wanted.advertise.to_string(),
        };
        Ok((swarm, response))
    }

    /// Goes on in the cluster that the node is in.
    ///
    /// # Errors
    /// A damaged store, a port that is taken.
    pub async fn open(config: &Arc<Config>, security: &SecurityConfig, parts: &NodeParts, node: NodeFile) -> Result<Self> {
        let listener = bind(node.listen_addr).await?;
        let store = match Store::open(StoreConfig::new(config.data_dir.join("raft")), Arc::new(Alone)).await {
            Err(StoreError::Empty { .. }) => Err(anyhow!(
                "this node is a manager, but {} holds no cluster state; restore it from a backup, or remove {} to start anew",
                config.data_dir.join("raft").display(),
                config.data_dir.join("node.json").display()
            )),
            other => other.map_err(anyhow::Error::from),
        }?;
        Self::run(security, parts, node, store, listener).await
    }

    async fn run(security: &SecurityConfig, parts: &NodeParts, node: NodeFile, store: Store, listener: TcpListener) -> Result<Self> {
        let identity = security.identity().context("a node in a cluster has a certificate")?;
        let stop = CancellationToken::new();
        let manager = Manager::start(
            ManagerConfig {
                store: store.clone(),
                security: security.clone(),
                node_id: identity.node_id().clone(),
                advertise_addr: node.advertise_addr,
                clock: system_clock(),
            },
            &stop,
        );
        let mut servers = JoinSet::new();
        let serving = skep_manager::serve(skep_ca::serve_remote(listener, security), manager.remote_routes(), stop.clone());
        servers.spawn(async { serving.await.context("the cluster port's server ended") });
        let agent = AgentKeeper::start(parts.agent(Some(beside(&node).to_string())));
        Ok(Self { node, store, manager, agent, servers, stop })
    }

    pub fn local_routes(&self) -> tonic::service::Routes {
        self.manager.local_routes()
    }

    /// Resolves when a part ended that should run as long as the node is in the cluster.
    pub async fn ended(&mut self) -> anyhow::Error {
        match self.servers.join_next().await {
            Some(Ok(Err(error))) => error,
            _ => anyhow!("the cluster port's server ended"),
        }
    }

    /// Today's clusters have one manager.
    pub fn is_last_manager(&self) -> bool {
        self.store.status().members.len() <= 1
    }

    pub fn describe(&self, status: &mut StatusResponse) {
        status.leader = self.store.leadership().borrow().is_leader;
        status.listen_addr = self.node.listen_addr.to_string();
        status.advertise_addr = self.node.advertise_addr.to_string();
        let agent = self.agent.state();
        (status.connected, status.problem, status.runtime) = (agent.connected, agent.problem, agent.runtime);
    }

    /// Ends all parts and leaves the tasks running.
    pub async fn stop(mut self) {
        self.agent.stop().await;
        self.stop.cancel();
        self.manager.stop().await;
        while self.servers.join_next().await.is_some() {}
        self.store.shutdown().await;
    }

    /// Ends all parts and removes the tasks with everything they have.
    pub async fn leave(mut self) {
        self.agent.leave().await;
        self.stop.cancel();
        self.manager.stop().await;
        while self.servers.join_next().await.is_some() {}
        self.store.shutdown().await;
    }
}

/// What a caller of `init` asked for, understood.
struct Wanted {
    listen: SocketAddr,
    advertise: SocketAddr,
    lifetime: Duration,
    availability: Availability,
}

impl Wanted {
    fn parse(request: &InitRequest, config: &Config) -> Result<Self> {
        let listen = address::listening(&request.listen_addr, config.listen_addr)?;
        let advertise = address::advertised(&request.advertise_addr, listen)?;
        let lifetime = match request.node_cert_expiry {
            None => skep_ca::DEFAULT_LIFETIME,
            Some(asked) => Duration::try_from(asked).map_err(|_| anyhow!("node_cert_expiry: not a length of time"))?,
        };
        if lifetime < skep_ca::MIN_LIFETIME {
            anyhow::bail!("node_cert_expiry: {lifetime:?} is too short; at least {:?}", skep_ca::MIN_LIFETIME);
        }
        for pool in &request.default_address_pool {
            check_pool(pool, request.subnet_size)?;
        }
        let availability = skep_proto::parse("availability", request.availability).map_err(|error| anyhow!("{error}"))?;
        Ok(Self { listen, advertise, lifetime, availability })
    }
}

/// A pool is an IPv4 network that holds at least one subnet of the size to be cut from it.
fn check_pool(pool: &str, subnet_size: u32) -> Result<()> {
    let wrong = || anyhow!("default_address_pool: {pool:?} is not an IPv4 network in CIDR form, such as 10.0.0.0/8");
    let (address, prefix) = pool.split_once('/').ok_or_else(wrong)?;
    let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(wrong)?;
    let size = if subnet_size == 0 { 24 } else { subnet_size };
    if size > 30 || size < prefix {
        anyhow::bail!("subnet_size: subnets of /{size} do not fit into the pool {pool}; use a number from {prefix} to 30");
    }
    if u32::from(address) & u32::MAX.checked_shr(prefix).unwrap_or(0) != 0 {
        anyhow::bail!("default_address_pool: {pool} has bits set after its prefix; write the network's first address");
    }
    Ok(())
}

fn bytes<const N: usize>(random: &mut impl RngCore) -> [u8; N] {
    let mut drawn = [0; N];
    random.fill_bytes(&mut drawn);
    drawn
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; is another program there? Choose another with --listen-addr"))
}

/// A manager's agent speaks to the manager beside it, over the same port and TLS as every other agent.
fn beside(node: &NodeFile) -> SocketAddr {
    let (ip, port) = (node.listen_addr.ip(), node.listen_addr.port());
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        ip => SocketAddr::new(ip, port),
    }
}
