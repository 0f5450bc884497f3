//! A tunnel whose both ends are at followers goes by the leader.

use crate::support::{Lab, PATIENCE};
use skep_proto::TunnelEnd;
use skep_proto::skep::tunnels_client::TunnelsClient;
use skep_proto::skep::{ListenTunnelsRequest, TunnelPiece};
use skep_types::NodeRole;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_manager_reaches_a_node_of_any_other() {
    let lab = Lab::of(3).await;
    let followers = lab.followers().await;
    let worker = lab.certify(NodeRole::Worker).await;
    let id = worker.identity().unwrap().node_id().to_string();
    let node = lab.hosts[followers[0]].channel(&worker).await;
    let manager = lab.hosts[followers[1]].local_channel().await;
    let mut orders = TunnelsClient::new(node.clone()).listen(ListenTunnelsRequest {}).await.unwrap().into_inner();
    let dialling = async {
        let (tunnel, end, pieces) = TunnelEnd::new(TunnelPiece { node_id: id, ..TunnelPiece::default() });
        let incoming = TunnelsClient::new(manager).dial(ReceiverStream::new(pieces)).await.unwrap().into_inner();
        (end, tokio::spawn(tunnel.carry(incoming)))
    };
    let serving = async {
        let order = orders.message().await.unwrap().unwrap();
        let (tunnel, end, pieces) = TunnelEnd::new(TunnelPiece { token: order.token, ..TunnelPiece::default() });
        let incoming = TunnelsClient::new(node).serve(ReceiverStream::new(pieces)).await.unwrap().into_inner();
        (end, tokio::spawn(tunnel.carry(incoming)))
    };
    let ((mut near, near_carried), (mut far, far_carried)) = timeout(PATIENCE, async { tokio::join!(dialling, serving) }).await.unwrap();
    // More than a window, in both directions at once.
    let much = vec![5; 1 << 20];
    let exchange = async {
        let (mut near_reads, mut near_writes) = tokio::io::split(&mut near);
        let (mut far_reads, mut far_writes) = tokio::io::split(&mut far);
        let (mut there, mut back) = (Vec::new(), Vec::new());
        tokio::join!(
            async {
                near_writes.write_all(&much).await.unwrap();
                near_writes.shutdown().await.unwrap();
            },
            async {
                far_writes.write_all(&much).await.unwrap();
                far_writes.shutdown().await.unwrap();
            },
            async { far_reads.read_to_end(&mut there).await.unwrap() },
            async { near_reads.read_to_end(&mut back).await.unwrap() },
        );
        assert!(there == much && back == much);
    };
    timeout(PATIENCE, exchange).await.unwrap();
    timeout(PATIENCE, near_carried).await.unwrap().unwrap().unwrap();
    timeout(PATIENCE, far_carried).await.unwrap().unwrap().unwrap();
    lab.stop_all().await;
}
