//! The gRPC service `NetworkState`.

use super::not_leading;
use super::stream::{self, Changes};
use crate::authorize::{Caller, caller};
use crate::control::errors;
use crate::shared::Shared;
use skep_proto::skep::network_state_server::NetworkState;
use skep_proto::skep::{NetworkHello, NetworkReport};
use skep_store::ProposeError;
use skep_types::{Action, ClusterView as _, FieldError, Node, NodeId, NodeOverlay, Object};
use std::net::IpAddr;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Tries to write a node that others write too; each is a lost race.
const TRIES: u32 = 20;

/// What nodes call.
#[derive(Clone)]
pub(crate) struct NetworkStateService {
    shared: Arc<Shared>,
}

impl NetworkStateService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl NetworkState for NetworkStateService {
    type FollowStream = Changes;

    async fn follow(&self, request: Request<Streaming<NetworkReport>>) -> Result<Response<Changes>, Status> {
        let caller = caller(&request)?;
        caller.node()?;
        if self.shared.netstate.lock().is_none() {
            return Err(not_leading());
        }
        Ok(Response::new(stream::follow(self.shared.clone(), caller, request.into_inner())))
    }
}

/// Writes down where the node can be reached by its peers, if that is new; its number is given by the allocator. A node that comes
/// back as it was costs no write.
pub(super) async fn announce(shared: &Shared, caller: &Caller, hello: &NetworkHello) -> Result<NodeId, Status> {
    let id = caller.node()?;
    let underlay = underlay(shared, id, caller.addr, &hello.data_path_addr)?.to_string();
    let mut tries = 0;
    loop {
        let view = shared.store.view();
        let node = view.node(id).ok_or_else(|| Status::not_found(format!("node {id} is not in the cluster's store")))?;
        let known = node.overlay.clone().unwrap_or_default();
        if known.underlay == underlay {
            return Ok(id.clone());
        }
        let overlay = Some(NodeOverlay { underlay: underlay.clone(), ..known });
        let changed = Node { overlay, ..Node::clone(node) };
        match shared.propose(vec![Action::Update(Object::Node(Arc::new(changed)))]).await {
            Ok(_) => return Ok(id.clone()),
            Err(ProposeError::Refused(_)) if tries < TRIES => tries += 1,
            Err(error) => return Err(errors::propose(error)),
        }
    }
}

/// The address the node names, or the one it comes from as the others see it.
fn underlay(shared: &Shared, node: &NodeId, addr: Option<IpAddr>, named: &str) -> Result<IpAddr, Status> {
    if !named.is_empty() {
        let named: Option<IpAddr> = named.parse().ok().filter(|addr: &IpAddr| !addr.is_unspecified() && !addr.is_multicast());
        return named.ok_or_else(|| {
            errors::invalid(FieldError::new("hello.data_path_addr", "is not the address of a host; write one, or leave it empty"))
        });
    }
    addr.map(|addr| shared.outer_addr(node, addr))
        .ok_or_else(|| Status::failed_precondition("the address of the caller is not known; name one in hello.data_path_addr"))
}
