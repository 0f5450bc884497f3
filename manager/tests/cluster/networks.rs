//! The state of networks that span hosts, as nodes follow it.

use crate::support::{Agent, Cluster, PATIENCE, service};
use skep_proto::skep::network_endpoint::Readiness;
use skep_proto::skep::network_state_client::NetworkStateClient;
use skep_proto::skep::{NetworkChanges, NetworkEndpoint, NetworkHello, NetworkReport};
use skep_proto::v1::{self, control_client::ControlClient};
use skep_types::{ClusterView as _, Node, NodeRole};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// A node that follows, with what it was told.
struct Follower {
    reports: mpsc::Sender<NetworkReport>,
    changes: Streaming<NetworkChanges>,
    revision: u64,
    index: u32,
    /// By network: node numbers, endpoints by task, services by name.
    networks: BTreeMap<String, Known>,
    cleared: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Known {
    peers: BTreeMap<u32, String>,
    endpoints: BTreeMap<String, NetworkEndpoint>,
    services: BTreeMap<String, Vec<String>>,
}

/// The first node of a cluster says at its beginning what networks its machine is on, before it follows.
fn follows(node: &Node) -> bool {
    node.overlay.as_ref().is_some_and(|overlay| !overlay.underlay.is_empty())
}

fn hello(addr: &str) -> NetworkReport {
    NetworkReport { hello: Some(NetworkHello { data_path_addr: addr.into(), ..NetworkHello::default() }), ..NetworkReport::default() }
}

async fn open(channel: Channel, first: NetworkReport) -> Result<(mpsc::Sender<NetworkReport>, Streaming<NetworkChanges>), Status> {
    let (reports, stream) = mpsc::channel(16);
    reports.send(first).await.unwrap();
    let changes = NetworkStateClient::new(channel).follow(ReceiverStream::new(stream)).await?;
    Ok((reports, changes.into_inner()))
}

impl Follower {
    async fn start(channel: Channel, addr: &str) -> Self {
        let (reports, changes) = open(channel, hello(addr)).await.unwrap();
        Self { reports, changes, revision: 0, index: 0, networks: BTreeMap::new(), cleared: BTreeSet::new() }
    }

    fn apply(&mut self, changes: NetworkChanges) {
        assert!(changes.complete || self.revision > 0, "the first message is complete");
        (self.revision, self.index) = (changes.revision, changes.node_index);
        if changes.complete {
            self.networks.clear();
        }
        self.cleared.extend(changes.cleared_tasks);
        for delta in changes.networks {
            let known = self.networks.entry(delta.network_id.clone()).or_default();
            if delta.complete {
                *known = Known::default();
            }
            delta.removed_peers.iter().for_each(|index| drop(known.peers.remove(index)));
            delta.removed_endpoints.iter().for_each(|id| drop(known.endpoints.remove(id)));
            known.peers.extend(delta.peers.into_iter().map(|peer| (peer.node_index, peer.underlay)));
            known.endpoints.extend(delta.endpoints.into_iter().map(|endpoint| (endpoint.task_id.clone(), endpoint)));
            known.services.extend(delta.services.into_iter().map(|entry| (entry.name, entry.virtual_ips)));
            if delta.removed {
                self.networks.remove(&delta.network_id);
            }
        }
    }

    async fn wait(&mut self, what: &str, wish: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !wish(self) {
                let changes = self.changes.message().await.unwrap().expect("the stream goes on");
                self.apply(changes);
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what} was not told; known is {:#?}", self.networks);
        }
    }

    async fn acknowledge(&self) {
        self.reports.send(NetworkReport { programmed: self.revision, ..NetworkReport::default() }).await.unwrap();
    }

    fn readiness(&self, network: &str) -> Vec<Readiness> {
        let known = self.networks.get(network);
        known.into_iter().flat_map(|known| known.endpoints.values()).map(NetworkEndpoint::readiness).collect()
    }
}

async fn create_network(control: &mut ControlClient<Channel>, name: &str) -> String {
    let annotations = v1::Annotations { name: name.into(), ..Default::default() };
    let spec = v1::NetworkSpec { annotations: Some(annotations), ..Default::default() };
    let created = control.create_network(v1::CreateNetworkRequest { spec: Some(spec) }).await.unwrap();
    created.into_inner().network.unwrap().id
}

fn on(network: &str, replicas: u64) -> v1::ServiceSpec {
    let mut spec = service("web", replicas);
    let config = v1::NetworkAttachmentConfig { target: network.into(), aliases: vec!["www".into()], ..Default::default() };
    spec.task.as_mut().unwrap().networks.push(config);
    spec
}

async fn scale(control: &mut ControlClient<Channel>, id: &str, spec: v1::ServiceSpec) {
    let current = control.get_service(v1::GetServiceRequest { service_id: id.into(), insert_defaults: false }).await.unwrap();
    let service_version = current.into_inner().service.unwrap().meta.unwrap().version;
    let request = v1::UpdateServiceRequest { service_id: id.into(), service_version, spec: Some(spec), rollback: 0 };
    control.update_service(request).await.unwrap();
}

/// Two workers whose tasks do what the test says, each with its stream.
struct Two {
    cluster: Cluster,
    agents: [Agent; 2],
    followers: [Follower; 2],
    control: ControlClient<Channel>,
    network: String,
    service: String,
}

/// One task of the service runs on each, and both know it.
async fn two_with_a_task_each() -> Two {
    let cluster = Cluster::start().await;
    let workers = [cluster.join(NodeRole::Worker).await, cluster.join(NodeRole::Worker).await];
    let channels = [cluster.channel(&workers[0]).await, cluster.channel(&workers[1]).await];
    let mut agents = [Agent::start(channels[0].clone(), false).await, Agent::start(channels[1].clone(), false).await];
    let mut followers = [Follower::start(channels[0].clone(), "").await, Follower::start(channels[1].clone(), "192.0.2.7").await];
    let mut control = cluster.control().await;
    let network = create_network(&mut control, "back").await;
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(on("back", 2)) }).await.unwrap();
    let service = created.into_inner().service.unwrap().id;
    for agent in &mut agents {
        agent.wait(|played| played.tasks.len() == 1).await;
        let task = agent.played.lock().unwrap().tasks.keys().next().unwrap().clone();
        agent.report(&task, v1::TaskState::Running).await.unwrap();
    }
    for follower in &mut followers {
        let ready = |follower: &Follower| {
            let peers = follower.networks.get(&network).map_or(0, |known| known.peers.len());
            peers == 2 && follower.index != 0 && follower.readiness(&network) == [Readiness::Ready; 2]
        };
        follower.wait("both tasks and both peers", ready).await;
    }
    Two { cluster, agents, followers, control, network, service }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_know_each_others_tasks_and_a_task_is_cleared_when_all_have_taken_it_out() {
    let Two { cluster: _cluster, agents, mut followers, mut control, network, service } = two_with_a_task_each().await;
    let [one, two] = [followers[0].index, followers[1].index];
    assert_ne!(one, two);
    for follower in &followers {
        let known = &follower.networks[&network];
        assert_eq!(known.peers, BTreeMap::from([(one, "127.0.0.1".to_owned()), (two, "192.0.2.7".to_owned())]));
        assert_eq!(known.services.keys().collect::<Vec<_>>(), ["web"]);
        assert_eq!(known.services["web"].len(), 1, "its virtual IP");
        let hosts: BTreeSet<u32> = known.endpoints.values().map(|endpoint| endpoint.node_index).collect();
        assert_eq!(hosts, BTreeSet::from([one, two]));
    }
    scale(&mut control, &service, on("back", 1)).await;
    for follower in &mut followers {
        follower.wait("that one is to leave", |follower| follower.readiness(&network).contains(&Readiness::Leaving)).await;
    }
    let endpoints = followers[0].networks[&network].endpoints.values();
    let leaving = endpoints.filter(|endpoint| endpoint.readiness() == Readiness::Leaving).cloned().collect::<Vec<_>>();
    assert_eq!(leaving.len(), 1);
    let own = usize::from(leaving[0].node_index == two);
    followers[0].acknowledge().await;
    followers[1].acknowledge().await;
    let task = leaving[0].task_id.clone();
    followers[own].wait("that it may be stopped", |follower| follower.cleared.contains(&task)).await;
    let mut agents = agents;
    agents[own].report(&task, v1::TaskState::Shutdown).await.unwrap();
    let other = 1 - own;
    followers[other].wait("that it is gone", |follower| follower.readiness(&network) == [Readiness::Ready]).await;
    assert!(followers[other].cleared.is_empty());
    followers[own].wait("no more of the network", |follower| !follower.networks.contains_key(&network)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_and_a_new_stream_begin_with_everything() {
    let Two { mut cluster, followers, network, .. } = two_with_a_task_each().await;
    let indexes = followers.each_ref().map(|follower| follower.index);
    let ids: Vec<_> = cluster.store.view().nodes().filter(|node| follows(node)).cloned().collect();
    assert_eq!(ids.len(), 2);
    cluster.restart_manager().await;
    for mut follower in followers {
        let ended = async { while let Ok(Some(_)) = follower.changes.message().await {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends with its leader");
    }
    let worker = ids.iter().find(|node| node.overlay.as_ref().is_some_and(|overlay| overlay.index == indexes[0])).unwrap();
    let security = cluster.identity_of(worker.id.clone(), NodeRole::Worker);
    let mut first = Follower::start(cluster.channel(&security).await, "").await;
    first.wait("everything", |follower| follower.revision > 0).await;
    assert_eq!((first.index, first.networks[&network].peers.len()), (indexes[0], 2));
    assert_eq!(first.readiness(&network), [Readiness::Ready; 2]);
    // The node comes again: the old stream is not its stream any more.
    let mut second = Follower::start(cluster.channel(&security).await, "").await;
    second.wait("everything", |follower| follower.revision > 0).await;
    let ended = async {
        loop {
            if let Err(status) = first.changes.message().await {
                break status;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, ended).await.unwrap().code(), Code::Aborted);
    assert_eq!(second.index, indexes[0]);
    assert_eq!(cluster.store.view().node(&worker.id).unwrap().meta.version, worker.meta.version, "a node as it was costs no write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_says_who_it_is_and_follows_for_itself_only() {
    let cluster = Cluster::start().await;
    let worker = cluster.join(NodeRole::Worker).await;
    let channel = cluster.channel(&worker).await;
    let refused = async |first: NetworkReport| {
        let (_reports, mut changes) = open(channel.clone(), first).await?;
        tokio::time::timeout(PATIENCE, changes.message()).await.unwrap().map(|_| ())
    };
    assert_eq!(refused(NetworkReport::default()).await.unwrap_err().code(), Code::InvalidArgument);
    for addr in ["elsewhere", "0.0.0.0", "192.0.2.1:4789", "ff02::1"] {
        assert_eq!(refused(hello(addr)).await.unwrap_err().code(), Code::InvalidArgument, "{addr}");
    }
    // A certificate says who follows; nothing else can.
    let mut follower = Follower::start(channel.clone(), "").await;
    follower.wait("its number", |follower| follower.index != 0).await;
    let view = cluster.store.view();
    let spanning: Vec<_> = view.nodes().filter(|node| follows(node)).map(|node| node.id.clone()).collect();
    assert_eq!(spanning, [worker.identity().unwrap().node_id().clone()]);
    let mut request = tonic::Request::new(tokio_stream::iter([hello("")]));
    let manager = cluster.node_id.to_string();
    for (key, value) in [("forwarded_cert", "true"), ("forwarded_cert_cn", &manager), ("forwarded_cert_ou", "swarm-manager")] {
        request.metadata_mut().insert(key, value.parse().unwrap());
    }
    assert_eq!(NetworkStateClient::new(channel).follow(request).await.unwrap_err().code(), Code::PermissionDenied);
    // Who is removed is told nothing more.
    let mut control = cluster.control().await;
    let id = worker.identity().unwrap().node_id().to_string();
    control.remove_node(v1::RemoveNodeRequest { node_id: id, force: true }).await.unwrap();
    let ended = async { while let Ok(Some(_)) = follower.changes.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends");
}
