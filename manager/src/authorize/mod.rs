//! Decides for each call whether its caller may make it, and tells the method who that is.
//!
//! [`Authorized`] stands round every service. It looks the method up in one table, so that no method can be added without
//! a rule, and puts a [`Caller`] into the request. Rules: spec wire-behaviour 6 (`SK/ca/auth.go`). Streams end when the right
//! to have them does, see [`revoke`].

pub(crate) mod revoke;
mod table;

use self::revoke::{Revocations, Right};
use self::table::{Rule, is_stream, rule_for};
use crate::cut::cut_with;
use futures_util::future::{BoxFuture, Either};
use http::{HeaderMap, Request, Response};
use skep_ca::PeerIdentity;
use skep_types::{ClusterId, NodeId, NodeRole};
use std::borrow::Cow;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// What a connection knows of its other end. The server puts it into every request of the connection.
#[derive(Debug, Clone, Default)]
pub struct ConnectionInfo {
    /// The verified certificate, if the peer sent one.
    pub peer: Option<Arc<PeerIdentity>>,
    pub addr: Option<SocketAddr>,
}

/// Who makes a call, as far as it is proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// `None`: no certificate.
    pub node: Option<NodeId>,
    pub role: Option<NodeRole>,
    /// Of the caller, without port; unknown on odd transports.
    pub addr: Option<IpAddr>,
    /// The local socket: a trusted manager.
    pub local: bool,
    /// The manager that passed the call on.
    pub forwarder: Option<NodeId>,
}

impl Caller {
    /// The node behind an authorised call.
    pub(crate) fn node(&self) -> Result<&NodeId, Status> {
        self.node.as_ref().ok_or_else(|| Status::permission_denied("this call needs the certificate of a node"))
    }
}

/// Who makes this call.
pub(crate) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::internal("the call did not pass the authorisation"))
}

/// What the rules are checked against, at the moment of a call.
pub(crate) trait Facts: Send + Sync + 'static {
    fn cluster_id(&self) -> Option<ClusterId>;
    /// What the store says of a node, whatever its certificate says.
    fn standing(&self, node: &NodeId) -> Standing;
    /// This node, whose rights the local socket gives.
    fn local_node(&self) -> NodeId;
    fn is_local(&self, node: &NodeId) -> bool {
        *node == self.local_node()
    }
    fn local_addr(&self) -> IpAddr;
}

/// How a node stands in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// This manager has not received the cluster's state yet.
    NobodyKnows,
    /// Not in the store: it has what its certificate gives.
    Unlisted,
    Removed,
    /// In the store, with the role it should have a certificate for.
    Node(NodeRole),
}

/// Which door a call came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Remote,
    Local,
}

/// Who calls and whether they may.
fn authorise(
    facts: &dyn Facts,
    door: Door,
    path: &str,
    headers: &HeaderMap,
    connection: Option<&ConnectionInfo>,
) -> Result<Caller, Status> {
    let Some(rule) = rule_for(path) else {
        return Err(Status::unimplemented(format!("there is no method {path}")));
    };
    if door == Door::Local {
        let (node, addr) = (facts.local_node(), facts.local_addr());
        return Ok(Caller { node: Some(node), role: Some(NodeRole::Manager), addr: Some(addr), local: true, forwarder: None });
    }
    let addr = connection.and_then(|connection| connection.addr).map(|addr| addr.ip());
    let peer = connection.and_then(|connection| connection.peer.as_deref());
    let direct = peer.map(Claim::from);
    let is_forwarded = headers.contains_key("forwarded_cert");
    let mut forwarder = None;
    let claim = if is_forwarded {
        if rule == Rule::Peer {
            return Err(denied(rule, "managers' own calls are never passed on"));
        }
        // Only a manager may speak for another: whoever else sends these headers is refused.
        let speaker = direct.ok_or_else(|| denied(rule, "the call came without a certificate"))?;
        check(facts, Rule::Manager, &speaker)?;
        forwarder = Some(speaker.node.into_owned());
        Claim::forwarded(headers)?
    } else {
        direct
    };
    let addr = match &claim {
        _ if is_forwarded => forwarded_addr(headers).or(addr),
        // The agent beside this manager comes by way of the loopback; others reach the node at its own address.
        Some(claim) if facts.is_local(&claim.node) => Some(facts.local_addr()),
        _ => addr,
    };
    let nobody = Caller { node: None, role: None, addr, local: false, forwarder: forwarder.clone() };
    let Some(claim) = claim else {
        return match rule {
            Rule::Anyone => Ok(nobody),
            _ => Err(denied(rule, "the call came without a certificate")),
        };
    };
    match check(facts, rule, &claim) {
        Ok(role) => Ok(Caller { node: Some(claim.node.into_owned()), role, addr, local: false, forwarder }),
        // A stranger may still ask for the roots; its certificate gives it nothing.
        Err(_) if rule == Rule::Anyone => Ok(nobody),
        Err(refusal) => Err(refusal),
    }
}

/// What a certificate says, of the caller itself or of the one it speaks for.
struct Claim<'a> {
    node: Cow<'a, NodeId>,
    units: Cow<'a, [String]>,
    cluster: Cow<'a, ClusterId>,
}

impl<'a> From<&'a PeerIdentity> for Claim<'a> {
    fn from(peer: &'a PeerIdentity) -> Self {
        Self { node: Cow::Borrowed(&peer.node_id), units: Cow::Borrowed(&peer.units), cluster: Cow::Borrowed(&peer.cluster_id) }
    }
}

impl Claim<'_> {
    /// The certificate a follower passes on in metadata; `None` if the caller had none.
    fn forwarded(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let refuse = || Status::permission_denied("the forwarded identity is not complete");
        let mut marks = headers.get_all("forwarded_cert").iter();
        if marks.next().is_none_or(|mark| mark.as_bytes() != b"true") || marks.next().is_some() {
            return Err(refuse());
        }
        let texts = |name: &str| -> Vec<String> {
            headers
                .get_all(name)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let (nodes, clusters, units) = (texts("forwarded_cert_cn"), texts("forwarded_cert_org"), texts("forwarded_cert_ou"));
        match (nodes.as_slice(), clusters.first(), units.is_empty()) {
            ([], None, true) => Ok(None),
            ([node], Some(cluster), false) => {
                let (node, cluster) = (node.parse().map_err(|_| refuse())?, cluster.parse().map_err(|_| refuse())?);
                Ok(Some(Self { node: Cow::Owned(node), cluster: Cow::Owned(cluster), units: Cow::Owned(units) }))
            }
            _ => Err(refuse()),
        }
    }
}

fn forwarded_addr(headers: &HeaderMap) -> Option<IpAddr> {
    headers.get("remote_addr")?.to_str().ok()?.parse::<SocketAddr>().ok().map(|addr| addr.ip())
}

fn check(facts: &dyn Facts, rule: Rule, claim: &Claim<'_>) -> Result<Option<NodeRole>, Status> {
    let has = |role| claim.units.iter().any(|unit| unit == skep_ca::role_name(role));
    let role = if has(NodeRole::Manager) {
        Some(NodeRole::Manager)
    } else if has(NodeRole::Worker) {
        Some(NodeRole::Worker)
    } else {
        None
    };
    let role_is_enough = match rule {
        Rule::Anyone => true,
        Rule::Manager | Rule::Peer => role == Some(NodeRole::Manager),
        Rule::ManagerOrWorker => role.is_some(),
    };
    if !role_is_enough {
        return Err(denied(rule, "the caller's certificate gives another role"));
    }
    if facts.cluster_id().is_none_or(|cluster| cluster != *claim.cluster) {
        return Err(denied(rule, "the caller's certificate belongs to another cluster"));
    }
    match (rule, facts.standing(&claim.node)) {
        (_, Standing::Removed) => Err(denied(rule, &format!("node {} was removed from the cluster", claim.node))),
        // Whether this manager has the state at all is what its peers' raft calls bring.
        (Rule::Peer, _) => Ok(role),
        (_, Standing::NobodyKnows) => {
            Err(Status::unavailable("this manager has not received the cluster's state yet; try again, or ask another"))
        }
        (Rule::Manager, Standing::Node(NodeRole::Worker)) => {
            Err(denied(rule, &format!("node {} is not a manager any more, though its certificate says so", claim.node)))
        }
        _ => Ok(role),
    }
}

fn denied(rule: Rule, why: &str) -> Status {
    Status::permission_denied(format!("Permission denied: {why}; only {rule} may make this call"))
}

/// A service behind the rules.
#[derive(Clone)]
pub(crate) struct Authorized<S> {
    inner: S,
    guard: Guard,
}

/// What all services of a door are behind.
#[derive(Clone)]
pub(crate) struct Guard {
    pub facts: Arc<dyn Facts>,
    pub revocations: Arc<Revocations>,
    pub door: Door,
}

impl Guard {
    fn authorise<B>(&self, request: &Request<B>) -> Result<Caller, Status> {
        let connection = request.extensions().get::<ConnectionInfo>();
        authorise(&*self.facts, self.door, request.uri().path(), request.headers(), connection)
    }

    /// When a stream of this caller has to end; `None` for one that never loses its rights.
    fn cut(&self, path: &str, caller: &Caller) -> Option<crate::cut::Cut> {
        let node = caller.node.as_ref().filter(|_| !caller.local)?;
        let right = if rule_for(path) == Some(Rule::Manager) { Right::Rule } else { Right::Belong };
        let forwarder = caller.forwarder.as_ref().map(|forwarder| self.revocations.token(forwarder, Right::Rule));
        Some(revoke::cut(self.revocations.token(node, right), forwarder))
    }
}

impl<S> Authorized<S> {
    pub(crate) fn new(inner: S, guard: Guard) -> Self {
        Self { inner, guard }
    }
}

impl<S: NamedService> NamedService for Authorized<S> {
    const NAME: &'static str = S::NAME;
}

type Outcome = Result<Response<Body>, Infallible>;

impl<S> Service<Request<Body>> for Authorized<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Either<S::Future, Ready<Outcome>>, BoxFuture<'static, Outcome>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let refused = |request: &Request<Body>, refusal: Status| {
            tracing::debug!(path = request.uri().path(), why = refusal.message(), "call refused");
            Either::Left(Either::Right(ready(Ok(refusal.into_http()))))
        };
        let caller = match self.guard.authorise(&request) {
            Ok(caller) => caller,
            Err(refusal) => return refused(&request, refusal),
        };
        let cut = is_stream(request.uri().path()).then(|| self.guard.cut(request.uri().path(), &caller)).flatten();
        request.extensions_mut().insert(caller);
        let Some(mut cut) = cut else {
            return Either::Left(Either::Left(self.inner.call(request)));
        };
        // The right may have gone before its token was held.
        if let Err(refusal) = self.guard.authorise(&request) {
            return refused(&request, refusal);
        }
        let answer = self.inner.call(request);
        Either::Right(Box::pin(async move {
            tokio::select! {
                answer = answer => answer.map(|answer| cut_with(answer, cut, None)),
                status = &mut cut => Ok(status.into_http()),
            }
        }))
    }
}

#[cfg(test)]
mod tests;
