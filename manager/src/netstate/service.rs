//! The gRPC service `NetworkState`.

use super::not_leading;
use super::stream::{self, Changes};
use crate::authorize::{Caller, caller};
use crate::control::errors;
use crate::shared::Shared;
use ipnet::IpNet;
use skep_proto::skep::network_state_server::NetworkState;
use skep_proto::skep::{self, NetworkHello, NetworkReport};
use skep_store::ProposeError;
use skep_types::{Action, ClusterView as _, Encrypting, FieldError, Node, NodeId, NodeOverlay, Object, TunnelKey};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Of a node's own networks; it is in every copy of the node.
const MOST_PREFIXES: usize = 32;
/// Characters.
const LONGEST_REASON: usize = 300;
/// Bytes of an X25519 key (RFC 7748).
const KEY_LENGTH: usize = 32;
/// Of a node: while they are changed there are two.
const MOST_KEYS: usize = 2;

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

/// Writes down where the node can be reached by its peers and what it can do, if that is new; its number is given by the allocator.
/// A node that comes back as it was costs no write.
pub(super) async fn announce(shared: &Shared, caller: &Caller, hello: &NetworkHello) -> Result<NodeId, Status> {
    let id = caller.node()?;
    let underlay = underlay(shared, id, caller.addr, &hello.data_path_addr)?.to_string();
    let encrypting = encrypting(hello);
    let local_prefixes = local_prefixes(hello);
    write(shared, id, |known| {
        known.underlay.clone_from(&underlay);
        known.encrypting.clone_from(&encrypting);
        known.local_prefixes.clone_from(&local_prefixes);
    })
    .await?;
    Ok(id.clone())
}

/// Writes down the public halves of a node's keys, if they are new. A key that is another node's is refused: it would take the
/// other's packets.
pub(super) async fn tell_keys(shared: &Shared, id: &NodeId, keys: Vec<skep::TunnelKey>) -> Result<(), Status> {
    let keys = tunnel_keys(keys).map_err(errors::invalid)?;
    let is_of_other = |node: &Node| {
        let others = node.overlay.iter().filter(|_| node.id != *id).flat_map(|overlay| &overlay.tunnel_keys);
        others.into_iter().any(|other| keys.iter().any(|key| key.public == other.public))
    };
    if let Some(other) = shared.store.view().nodes().find(|node| is_of_other(node)) {
        let why = format!("has one of node {}; remove the files in `agent/wireguard` and restart", other.id);
        return Err(errors::invalid(FieldError::new("keys", why)));
    }
    write(shared, id, |known| known.tunnel_keys.clone_from(&keys)).await
}

/// Writes down what a packet may measure on a node's device, if that is new: its peers must not send it more.
pub(super) async fn tell_mtu(shared: &Shared, id: &NodeId, mtu: u32) -> Result<(), Status> {
    write(shared, id, |known| known.underlay_mtu = mtu).await
}

/// In one form and order, so that the same ones are no change.
fn local_prefixes(hello: &NetworkHello) -> Vec<String> {
    let all: BTreeSet<IpNet> = hello.local_prefixes.iter().filter_map(|text| text.parse::<IpNet>().ok()).map(|net| net.trunc()).collect();
    all.iter().take(MOST_PREFIXES).map(ToString::to_string).collect()
}

/// Changes what is known of a node, if it is a change.
async fn write(shared: &Shared, id: &NodeId, change: impl Fn(&mut NodeOverlay)) -> Result<(), Status> {
    let mut tries = 0;
    loop {
        let view = shared.store.view();
        let node = view.node(id).ok_or_else(|| Status::not_found(format!("node {id} is not in the cluster's store")))?;
        let mut overlay = node.overlay.clone().unwrap_or_default();
        change(&mut overlay);
        if node.overlay.as_ref() == Some(&overlay) {
            return Ok(());
        }
        let changed = Node { overlay: Some(overlay), ..Node::clone(node) };
        match shared.propose(vec![Action::Update(Object::Node(Arc::new(changed)))]).await {
            Ok(_) => return Ok(()),
            Err(ProposeError::Refused(_)) if tries < TRIES => tries += 1,
            Err(error) => return Err(errors::propose(error)),
        }
    }
}

/// What the node says of itself; words of a node are shown to people, so there is an end to them.
fn encrypting(hello: &NetworkHello) -> Encrypting {
    match (hello.can_encrypt, hello.cannot_encrypt.as_str()) {
        (true, _) => Encrypting::Able,
        (false, "") => Encrypting::Unsaid,
        (false, why) => Encrypting::Unable(why.chars().filter(|char| !char.is_control()).take(LONGEST_REASON).collect()),
    }
}

fn tunnel_keys(wire: Vec<skep::TunnelKey>) -> Result<Vec<TunnelKey>, FieldError> {
    let mut keys: Vec<TunnelKey> = Vec::new();
    for (at, key) in wire.into_iter().enumerate() {
        let bad = |field: &str, what: &str| FieldError::new(format!("keys[{at}].{field}"), what);
        let port = u16::try_from(key.port).ok().filter(|port| *port != 0).ok_or_else(|| bad("port", "is not a UDP port"))?;
        if key.public_key.len() != KEY_LENGTH {
            return Err(bad("public_key", "is not 32 bytes long"));
        }
        if key.epoch == 0 || at == MOST_KEYS || keys.iter().any(|other| other.epoch == key.epoch) {
            return Err(bad("epoch", "is not one of at most two different ones"));
        }
        keys.push(TunnelKey { epoch: key.epoch, public: key.public_key, port });
    }
    keys.sort_by_key(|key| key.epoch);
    Ok(keys)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(epoch: u32) -> skep::TunnelKey {
        skep::TunnelKey { epoch, public_key: vec![epoch as u8; KEY_LENGTH], port: 51820 }
    }

    #[test]
    fn keys_are_whole_and_of_epochs_that_differ() {
        let read = tunnel_keys(vec![key(5), key(4)]).unwrap();
        assert_eq!(read.iter().map(|key| (key.epoch, key.port)).collect::<Vec<_>>(), [(4, 51820), (5, 51820)]);
        let refused = |keys| tunnel_keys(keys).unwrap_err().to_string();
        assert!(refused(vec![skep::TunnelKey { public_key: vec![1], ..key(4) }]).contains("32 bytes"));
        assert!(refused(vec![skep::TunnelKey { port: 70_000, ..key(4) }]).contains("not a UDP port"));
        assert!(refused(vec![key(4), key(4)]).contains("keys[1].epoch"));
        assert!(refused(vec![key(4), key(5), key(6)]).contains("keys[2].epoch"));
        assert!(refused(vec![key(0)]).contains("keys[0].epoch"));
    }

    #[test]
    fn a_node_that_says_nothing_is_not_taken_to_be_able() {
        let hello =
            |can_encrypt, why: &str| encrypting(&NetworkHello { can_encrypt, cannot_encrypt: why.into(), ..NetworkHello::default() });
        assert_eq!((hello(false, ""), hello(true, "")), (Encrypting::Unsaid, Encrypting::Able));
        assert_eq!(hello(false, "no\u{1b} module"), Encrypting::Unable("no module".into()));
        assert!(matches!(hello(false, &"x".repeat(1000)), Encrypting::Unable(why) if why.len() == LONGEST_REASON));
    }
}
