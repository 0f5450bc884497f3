//! The way to other nodes: tunnels that the leader orders of them (`skep.v1.Tunnels`).

use super::ClusterCalls;
use crate::docker::failure;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use skep_docker_api::{ApiError, CALL_LIMIT, Connection, Reach};
use skep_proto::TunnelEnd;
use skep_proto::skep::TunnelPiece;
use skep_types::NodeId;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

/// One end, and the task that carries what goes through. Dropped: the tunnel is over at both ends.
struct Tunnel {
    end: DuplexStream,
    _carrying: AbortOnDropHandle<()>,
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.end).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_shutdown(context)
    }
}

#[async_trait]
impl Reach for ClusterCalls {
    async fn dial(&self, node: &NodeId) -> Result<Box<dyn Connection>, ApiError> {
        let (tunnel, end, pieces) = TunnelEnd::new(TunnelPiece { node_id: node.to_string(), ..TunnelPiece::default() });
        let dialling = async {
            let answer = self.manager.tunnels().dial(ReceiverStream::new(pieces)).await;
            answer.map_err(|status| failure::of_node(&status))
        };
        let too_long = || ApiError::unavailable(format!("node {node} cannot be reached: no tunnel within {} s", CALL_LIMIT.as_secs()));
        let incoming = tokio::time::timeout(CALL_LIMIT, self.ask(dialling)).await.map_err(|_| too_long())??.into_inner();
        let node = node.clone();
        let carrying = tokio::spawn(async move {
            if let Err(error) = tunnel.carry(incoming.boxed()).await {
                tracing::debug!(%node, %error, "a tunnel to a node broke off");
            }
        });
        Ok(Box::new(Tunnel { end, _carrying: AbortOnDropHandle::new(carrying) }))
    }
}
