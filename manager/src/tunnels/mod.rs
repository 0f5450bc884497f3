//! The service `skep.v1.Tunnels`: connections from managers to the Docker API of nodes, which nodes open themselves.
//!
//! ```text
//!  docker-cluster.sock ── Dial(node) ──► desk ── order, token ──► Listen ──► agent
//!                              ▲                                              │
//!                              └────────────── relay ◄── Serve(token) ◄───────┘
//! ```
//! All three calls are the leader's, wherever they come in. A tunnel belongs to its Dial: when that call ends, so does all of it.
//! Nothing is stored; after a change of the leader nodes listen anew and clients dial anew.

mod desk; // who listens, what is ordered
mod relay; // pieces from one end to the other

use crate::authorize::caller;
use crate::control::errors;
use crate::shared::Shared;
use desk::{Desk, ORDER_LIFE, Refusal};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use relay::{NodeEnd, relay};
use skep_proto::MOST_PIECES;
use skep_proto::skep::tunnels_server::Tunnels as Service;
use skep_proto::skep::{ListenTunnelsRequest, TunnelOrder, TunnelPiece};
use skep_types::{ClusterView as _, Node, NodeId, NodeState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

/// Who opens a tunnel says with its first piece, which it sends with the call, which one; this is for the network in between.
const FIRST_PIECE: Duration = Duration::from_secs(10);
/// How long a node that is up and does not listen yet is waited for: after a change of the leader nodes need a moment.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(3);

/// What there is of tunnels at this manager.
pub(crate) type Tunnels = Desk<NodeEnd>;

#[derive(Clone)]
pub(crate) struct TunnelService {
    shared: Arc<Shared>,
}

impl TunnelService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn refusal(&self, id: &NodeId, refusal: Refusal) -> Status {
        match refusal {
            Refusal::NobodyListens => {
                let view = self.shared.store.view();
                let name = view.node(id).and_then(|node| Some(node.description.as_ref()?.hostname.clone())).unwrap_or_default();
                Status::unavailable(match view.node(id) {
                    Some(node) if !is_up(node) => format!("node {id} ({name}) is {}", state(node)),
                    _ => format!(
                        "node {id} ({name}) opens no tunnel to its containers: either its agent is no skepd, or of an older version, or it has \
                         only just lost its manager; try again, or ask its own Docker API"
                    ),
                })
            }
            Refusal::TooMany { most } => {
                Status::resource_exhausted(format!("{most} tunnels to nodes are open, which is as many as may be"))
            }
            Refusal::TooManyOfNode { most } => {
                Status::resource_exhausted(format!("{most} tunnels to node {id} are open, which is as many as may be"))
            }
        }
    }
}

fn is_up(node: &Node) -> bool {
    matches!(node.status.state, NodeState::Ready | NodeState::Unknown)
}

fn state(node: &Node) -> &'static str {
    match node.status.state {
        NodeState::Down => "down",
        NodeState::Disconnected => "disconnected",
        NodeState::Ready | NodeState::Unknown => "up",
    }
}

type Pieces = BoxStream<'static, Result<TunnelPiece, Status>>;

/// Says which tunnel is meant; nothing goes through before.
async fn first(pieces: &mut Streaming<TunnelPiece>) -> Result<TunnelPiece, Status> {
    let first = tokio::time::timeout(FIRST_PIECE, pieces.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("nobody said which tunnel it is"))??;
    let first = first.ok_or_else(|| Status::invalid_argument("the first piece is missing"))?;
    if !first.data.is_empty() || first.end || first.credit != 0 {
        return Err(Status::invalid_argument("the first piece says which tunnel it is, and nothing else"));
    }
    Ok(first)
}

#[tonic::async_trait]
impl Service for TunnelService {
    type ListenStream = BoxStream<'static, Result<TunnelOrder, Status>>;
    type ServeStream = Pieces;
    type DialStream = Pieces;

    async fn listen(&self, request: Request<ListenTunnelsRequest>) -> Result<Response<Self::ListenStream>, Status> {
        let node = caller(&request)?.node()?.clone();
        let (listener, mut leadership, stop) =
            (self.shared.tunnels.listen(node), self.shared.store.leadership(), self.shared.stop.clone().cancelled_owned());
        let over = async move {
            tokio::select! {
                _ = leadership.wait_for(|known| !known.is_leader) => {}
                () = stop => {}
            }
        };
        let orders = stream::unfold(listener, |mut listener| async move {
            let token = listener.next().await?;
            Some((Ok(TunnelOrder { token: token.to_vec() }), listener))
        });
        Ok(Response::new(orders.take_until(over).boxed()))
    }

    async fn serve(&self, request: Request<Streaming<TunnelPiece>>) -> Result<Response<Pieces>, Status> {
        let node = caller(&request)?.node()?.clone();
        let mut pieces = request.into_inner();
        let first = first(&mut pieces).await?;
        let unknown = || Status::not_found("there is no such order for this node, or not any more");
        let token = first.token.as_slice().try_into().map_err(|_| unknown())?;
        let give = self.shared.tunnels.take(&token, &node, Instant::now()).ok_or_else(unknown)?;
        let (to_node, queue) = mpsc::channel(MOST_PIECES);
        // Who ordered it may have gone away.
        give.send(NodeEnd { pieces, to_node }).map_err(|_| unknown())?;
        Ok(Response::new(ReceiverStream::new(queue).map(Ok).boxed()))
    }

    async fn dial(&self, request: Request<Streaming<TunnelPiece>>) -> Result<Response<Pieces>, Status> {
        let mut pieces = request.into_inner();
        let first = first(&mut pieces).await?;
        let id: NodeId = errors::id("node_id", &first.node_id)?;
        let is_up = match self.shared.store.view().node(&id) {
            None => return Err(Status::not_found(format!("node {id} not found"))),
            Some(node) => is_up(node),
        };
        if is_up {
            self.shared.tunnels.listens(&id, ARRIVAL_LIMIT).await;
        }
        let ordered = self.shared.tunnels.order(&id, rand::random(), Instant::now()).map_err(|refusal| self.refusal(&id, refusal))?;
        let (end, place) = tokio::time::timeout(ORDER_LIFE, ordered.opened())
            .await
            .ok()
            .flatten()
            .ok_or_else(|| Status::unavailable(format!("node {id} was asked to open a tunnel and did not; try again")))?;
        let (to_dialler, queue) = mpsc::channel(MOST_PIECES);
        let relaying = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = relay(pieces, to_dialler, end).await {
                tracing::debug!(node = %id, %error, "a tunnel broke off");
            }
        }));
        let stop = self.shared.stop.clone().cancelled_owned();
        let kept = (ReceiverStream::new(queue), relaying, place);
        let answer = stream::unfold(kept, |mut kept| async move { Some((Ok(kept.0.next().await?), kept)) });
        Ok(Response::new(answer.take_until(stop).boxed()))
    }
}
