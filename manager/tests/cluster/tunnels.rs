//! Connections to nodes: who may order them, who may open them, and that bytes arrive.

use crate::support::{Cluster, PATIENCE};
use skep_proto::TunnelEnd;
use skep_proto::skep::tunnels_client::TunnelsClient;
use skep_proto::skep::{ListenTunnelsRequest, TunnelPiece};
use skep_types::NodeRole;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// An end that is open, and what carries it.
type Opened = (DuplexStream, tokio::task::JoinHandle<Result<(), skep_proto::TunnelError>>);

async fn dial(channel: Channel, node: &str) -> Result<Opened, Status> {
    let (tunnel, end, pieces) = TunnelEnd::new(TunnelPiece { node_id: node.into(), ..TunnelPiece::default() });
    let incoming = TunnelsClient::new(channel).dial(ReceiverStream::new(pieces)).await?.into_inner();
    Ok((end, tokio::spawn(tunnel.carry(incoming))))
}

async fn serve(channel: Channel, token: &[u8]) -> Result<Opened, Status> {
    let (tunnel, end, pieces) = TunnelEnd::new(TunnelPiece { token: token.into(), ..TunnelPiece::default() });
    let incoming = TunnelsClient::new(channel).serve(ReceiverStream::new(pieces)).await?.into_inner();
    Ok((end, tokio::spawn(tunnel.carry(incoming))))
}

fn code<T>(outcome: Result<T, Status>) -> Option<Code> {
    outcome.err().map(|status| status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_reaches_the_node_it_names_and_nobody_else_opens_the_way() {
    let cluster = Cluster::start().await;
    let (node, other) = (cluster.join(NodeRole::Worker).await, cluster.join(NodeRole::Worker).await);
    let (manager, worker, stranger) = (cluster.local_channel().await, cluster.channel(&node).await, cluster.channel(&other).await);
    let id = node.identity().unwrap().node_id().to_string();

    assert_eq!(code(dial(worker.clone(), &id).await), Some(Code::PermissionDenied), "a worker orders one");
    let nobody = dial(manager.clone(), &id).await.err().unwrap();
    assert!(nobody.code() == Code::Unavailable && nobody.message().contains("opens no tunnel"), "{nobody:?}");
    assert_eq!(code(dial(manager.clone(), "0nothing0nothing0nothing0").await), Some(Code::NotFound));
    assert_eq!(code(dial(manager.clone(), "").await), Some(Code::InvalidArgument));
    assert_eq!(code(serve(worker.clone(), &[7; 32]).await), Some(Code::NotFound), "a token that nobody gave");
    assert_eq!(code(serve(worker.clone(), b"short").await), Some(Code::NotFound));

    let mut orders = TunnelsClient::new(worker.clone()).listen(ListenTunnelsRequest {}).await.unwrap().into_inner();
    let dialling = tokio::spawn({
        let (manager, id) = (manager.clone(), id.clone());
        async move { dial(manager, &id).await }
    });
    let order = timeout(PATIENCE, orders.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(order.token.len(), 32);
    assert_eq!(code(serve(stranger, &order.token).await), Some(Code::NotFound), "another node's");
    let (mut far, far_carried) = serve(worker.clone(), &order.token).await.unwrap();
    assert_eq!(code(serve(worker.clone(), &order.token).await), Some(Code::NotFound), "a second time");
    let (mut near, near_carried) = timeout(PATIENCE, dialling).await.unwrap().unwrap().unwrap();

    let much = vec![3; 1 << 20];
    let talking = async {
        let asking = async {
            near.write_all(&much).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            assert!(answer == much);
        };
        let answering = async {
            let mut question = Vec::new();
            far.read_to_end(&mut question).await.unwrap();
            far.write_all(&question).await.unwrap();
            far.shutdown().await.unwrap();
        };
        tokio::join!(asking, answering);
    };
    timeout(PATIENCE, talking).await.unwrap();
    timeout(PATIENCE, near_carried).await.unwrap().unwrap().unwrap();
    timeout(PATIENCE, far_carried).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_with_the_call_of_either_end_and_with_the_rights_of_the_node() {
    let cluster = Cluster::start().await;
    let node = cluster.join(NodeRole::Worker).await;
    let (manager, worker) = (cluster.local_channel().await, cluster.channel(&node).await);
    let id = node.identity().unwrap().node_id().to_string();
    let mut orders = TunnelsClient::new(worker.clone()).listen(ListenTunnelsRequest {}).await.unwrap().into_inner();
    let mut open = async || {
        let (dialled, served) = tokio::join!(dial(manager.clone(), &id), async {
            let order = timeout(PATIENCE, orders.message()).await.unwrap().unwrap().unwrap();
            serve(worker.clone(), &order.token).await
        });
        (dialled.unwrap(), served.unwrap())
    };
    let ((near, near_carried), (mut far, _far_carried)) = open().await;
    near_carried.abort();
    drop(near);
    assert_eq!(timeout(PATIENCE, far.read(&mut [0; 1])).await.unwrap().unwrap(), 0, "the node does not hear of the end");

    let ((mut near, _near_carried), (_far, far_carried)) = open().await;
    far_carried.abort();
    assert_eq!(timeout(PATIENCE, near.read(&mut [0; 1])).await.unwrap().unwrap(), 0, "the manager does not hear of the end");

    let ((mut near, _near_carried), (_far, _far_carried)) = open().await;
    cluster.control().await.remove_node(skep_proto::v1::RemoveNodeRequest { node_id: id.clone(), force: true }).await.unwrap();
    assert_eq!(timeout(PATIENCE, near.read(&mut [0; 1])).await.unwrap().unwrap(), 0, "a removed node keeps its tunnels");
    let over = timeout(PATIENCE, orders.message()).await.unwrap();
    assert!(!matches!(over, Ok(Some(_))), "a removed node is told more");
    assert_eq!(code(dial(manager.clone(), &id).await), Some(Code::NotFound));
}
