//! Connections that managers ask for: each is opened by this node and leads to what its daemon answers there (`skep.v1.Tunnels`).
//!
//! The stream of orders lives beside the session and never ends it. A tunnel goes over the session's connection: its own window
//! bounds what stands still, so that heartbeats never wait behind it.

use crate::error::chain;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use skep_proto::TunnelEnd;
use skep_proto::skep::tunnels_client::TunnelsClient;
use skep_proto::skep::{ListenTunnelsRequest, TunnelPiece};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// After a stream of orders that broke off.
const RETRY: Duration = Duration::from_secs(1);
/// Open at a time, whatever a manager orders; as many as it does.
const MOST: usize = 64;
/// For a manager to take the end of a tunnel that it ordered.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// What is at this node's end of tunnels.
pub trait Answer: Send + Sync + 'static {
    /// Talks with a manager until the connection's end.
    fn answer(&self, connection: DuplexStream) -> BoxFuture<'static, ()>;
}

/// Until dropped, which ends the tunnels too.
pub async fn follow(channel: Channel, answer: Option<Arc<dyn Answer>>) -> Infallible {
    let Some(answer) = answer else { return std::future::pending().await };
    loop {
        let status = once(channel.clone(), &answer).await;
        if status.code() == Code::Unimplemented {
            tracing::info!("the manager knows no tunnels; this node's containers are reached on this node only");
            std::future::pending::<()>().await;
        }
        tracing::debug!(reason = status.message(), "the orders of tunnels ended; asking again");
        tokio::time::sleep(RETRY).await;
    }
}

async fn once(channel: Channel, answer: &Arc<dyn Answer>) -> Status {
    let mut orders = match TunnelsClient::new(channel.clone()).listen(ListenTunnelsRequest {}).await {
        Ok(orders) => orders.into_inner(),
        Err(status) => return status,
    };
    let mut open = JoinSet::new();
    loop {
        let order = tokio::select! {
            order = orders.message() => order,
            Some(_) = open.join_next() => continue,
        };
        match order {
            Ok(Some(order)) if open.len() < MOST => {
                let (channel, answer) = (channel.clone(), Arc::clone(answer));
                open.spawn(async move {
                    if let Err(why) = tunnel(channel, order.token, answer).await {
                        tracing::debug!(why, "a tunnel to this node ended early");
                    }
                });
            }
            Ok(Some(_)) => tracing::warn!(most = MOST, "a manager orders more tunnels than this node opens"),
            Ok(None) => return Status::unavailable("the manager ended it"),
            Err(status) => return status,
        }
    }
}

/// Opens one and answers on it.
async fn tunnel(channel: Channel, token: Vec<u8>, answer: Arc<dyn Answer>) -> Result<(), String> {
    let (end, connection, pieces) = TunnelEnd::new(TunnelPiece { token, ..TunnelPiece::default() });
    let mut client = TunnelsClient::new(channel);
    let called = tokio::time::timeout(CALL_LIMIT, client.serve(ReceiverStream::new(pieces))).await;
    let incoming = called.map_err(|_| "the manager did not take it in time".to_owned())?;
    let incoming = incoming.map_err(|status| status.message().to_owned())?.into_inner();
    let carrying = async move { end.carry(incoming.boxed()).await.map_err(|error| chain(&error)) };
    let (carried, ()) = tokio::join!(carrying, answer.answer(connection));
    carried
}
