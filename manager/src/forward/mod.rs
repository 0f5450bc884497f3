//! Any manager may be asked: what only the leader can answer is passed on to it, streams included (spec wire-behaviour 2.3, 6).
//!
//! [`Forwarded`] stands between the rules and a service. On the leader it lets calls through; elsewhere it sends them on with
//! what this manager knows of the caller. One hop only: who was taken for the leader and is not refuses.
//!
//! While nobody leads, calls wait. What was not sent, and what may be sent twice, goes to the next leader; of anything else the
//! caller learns that the answer is lost.

mod barrier;
mod metadata;

pub(crate) use self::barrier::Barrier;

use crate::authorize::{ConnectionInfo, Door};
use crate::cut::{Cut, cut_with};
use crate::peers::{Link, Purpose};
use crate::shared::Shared;
use bytes::Bytes;
use futures_util::future::{BoxFuture, Either};
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use skep_store::{Leadership, Member, RaftId};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

/// How long a call waits for a leader that can be reached; its own deadline may be sooner (spec wire-behaviour 6).
const PATIENCE: Duration = Duration::from_secs(10);
/// Between tries to reach a leader that is known and not there, or does not know yet that it leads.
const RETRY: Duration = Duration::from_millis(100);
/// Answers of a leader that has just given its place away may still be on the way.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Longest request: 4 MiB and the frame's head (spec wire-behaviour 2.1).
const MAX_REQUEST: usize = (4 << 20) + 5;
/// What every node follows as long as it lives.
const NETWORK_STATE: &str = "/skep.v1.NetworkState/Follow";
/// And what it listens to.
const TUNNEL_ORDERS: &str = "/skep.v1.Tunnels/Listen";
/// Marks the answer of a manager that was taken for the leader and did nothing.
const NOT_LEADER: &str = "skep-not-leader";

/// The refusal of a call that somebody else has to answer. Nothing was done: the forwarder goes on to the next leader.
pub(crate) fn not_leader(code: Code, text: impl Into<String>) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(NOT_LEADER, MetadataValue::from_static("true"));
    Status::with_metadata(code, text, metadata)
}

/// A service that only the leader answers.
#[derive(Clone)]
pub(crate) struct Forwarded<S> {
    inner: S,
    forwarder: Arc<Forwarder>,
    door: Door,
}

impl<S> Forwarded<S> {
    pub(crate) fn new(inner: S, forwarder: Arc<Forwarder>, door: Door) -> Self {
        Self { inner, forwarder, door }
    }
}

impl<S: NamedService> NamedService for Forwarded<S> {
    const NAME: &'static str = S::NAME;
}

type Outcome = Result<Response<Body>, Infallible>;

impl<S> Service<Request<Body>> for Forwarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Outcome>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.forwarder.answers_here(request.uri().path()) {
            return Either::Left(self.inner.call(request));
        }
        // Generated servers are always ready, so a clone is too.
        let (inner, forwarder, door) = (self.inner.clone(), self.forwarder.clone(), self.door);
        Either::Right(Box::pin(async move { Ok(forwarder.carry(inner, request, door).await) }))
    }
}

/// Who has to answer.
enum Leader {
    Here,
    There(RaftId, Member),
}

/// The body of a request, to be sent once or until it arrives.
enum Kept {
    Whole(Bytes),
    Streamed(Option<Body>),
}

impl Kept {
    async fn of(path: &str, body: Body) -> Result<Self, Status> {
        if is_streamed(path) {
            return Ok(Self::Streamed(Some(body)));
        }
        let whole = Limited::new(body, MAX_REQUEST).collect().await;
        whole.map(|whole| Self::Whole(whole.to_bytes())).map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => Status::resource_exhausted(format!("the request is longer than {} MiB", MAX_REQUEST >> 20)),
            None => Status::cancelled(format!("the request broke off: {error}")),
        })
    }

    fn take(&mut self) -> Option<Body> {
        match self {
            Self::Whole(bytes) => Some(Body::new(Full::new(bytes.clone()))),
            Self::Streamed(body) => body.take(),
        }
    }

    fn is_there(&self) -> bool {
        !matches!(self, Self::Streamed(None))
    }
}

/// Requests with a stream from the caller cannot be kept.
fn is_streamed(path: &str) -> bool {
    ["/docker.swarmkit.v1.LogBroker/PublishLogs", NETWORK_STATE, "/skep.v1.Tunnels/Dial", "/skep.v1.Tunnels/Serve"].contains(&path)
}

/// Calls that change nothing, or the same again: they may be sent once more when nobody knows whether they arrived.
fn is_repeatable(path: &str) -> bool {
    is_read(path)
        || ["CA/", "NodeCA/NodeCertificateStatus", "Dispatcher/", "LogBroker/ListenSubscriptions"]
            .iter()
            .any(|prefix| path.strip_prefix("/docker.swarmkit.v1.").is_some_and(|method| method.starts_with(prefix)))
        || path.starts_with("/skep.v1.Membership/")
}

/// Questions of clients, which must see everything that was acknowledged before.
fn is_read(path: &str) -> bool {
    let method = path.strip_prefix("/docker.swarmkit.v1.Control/").or_else(|| path.strip_prefix("/skep.v1.Explanations/"));
    method.is_some_and(|method| method.starts_with("Get") || method.starts_with("List"))
}

/// What nodes want by themselves, and thousands of them at the same time after a change of leader: streams that last, registrations,
/// certificates.
pub(crate) fn is_for_agents(path: &str) -> bool {
    let prefixes = ["Dispatcher/", "LogBroker/", "NodeCA/", "CA/"];
    [NETWORK_STATE, TUNNEL_ORDERS].contains(&path)
        || path.strip_prefix("/docker.swarmkit.v1.").is_some_and(|method| prefixes.iter().any(|prefix| method.starts_with(prefix)))
}

/// Calls whose callers expect an answer and not another try: they wait while the leadership moves away from here.
fn is_awaited(path: &str) -> bool {
    path.starts_with("/docker.swarmkit.v1.Control/")
        || path.starts_with("/skep.v1.Explanations/")
        || path == "/docker.swarmkit.v1.NodeCA/IssueNodeCertificate"
}

/// Finds the leader and carries calls there.
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
    barrier: Barrier,
}

impl Forwarder {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, barrier: Barrier::default() }
    }

    /// Whether the call needs nothing from anybody else.
    fn answers_here(&self, path: &str) -> bool {
        self.shared.store.leads() && !(is_awaited(path) && self.has_peers())
    }

    fn has_peers(&self) -> bool {
        self.shared.group.members().len() > 1
    }

    async fn carry<S>(&self, mut inner: S, request: Request<Body>, door: Door) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let purpose = if is_for_agents(&path) { Purpose::Agents } else { Purpose::Forward };
        let outcome = async {
            let by = Instant::now() + PATIENCE;
            let mut kept = Kept::of(&path, body).await?;
            loop {
                let (leader, member) = match self.leader(by).await? {
                    Leader::Here => {
                        if is_read(&path)
                            && self.has_peers()
                            && let Err(error) = self.barrier.pass(&self.shared.store).await
                        {
                            self.again(by, Status::unavailable(format!("{error}; try again"))).await?;
                            continue;
                        }
                        let Some(body) = kept.take() else { return Err(lost()) };
                        let Ok(answer) = inner.call(Request::from_parts(parts.clone(), body)).await;
                        if answer.headers().contains_key(NOT_LEADER) && kept.is_there() {
                            self.again(by, changing()).await?;
                            continue;
                        }
                        return Ok(answer);
                    }
                    Leader::There(..) if metadata::was_forwarded(&parts.headers) => return Err(second_hop()),
                    Leader::There(leader, member) => (leader, member),
                };
                let link = match self.shared.transport.link(purpose, leader, &member).await {
                    Ok(link) => link,
                    Err(error) => {
                        tracing::debug!(%path, leader, %error, "the leader cannot be reached");
                        self.again(by, Status::unavailable(format!("the leader cannot be reached: {error}; try again"))).await?;
                        continue;
                    }
                };
                let Some(body) = kept.take() else { return Err(lost()) };
                match self.send(&link, leader, &parts, body, door).await {
                    Ok(answer) if answer.headers().contains_key(NOT_LEADER) => {
                        if !kept.is_there() {
                            return Err(lost());
                        }
                        self.again(by, changing()).await?;
                    }
                    Ok(answer) => return Ok(cut_with(answer, self.gone(leader), Some(lost))),
                    Err(Lost { unsent }) if kept.is_there() && (unsent || is_repeatable(&path)) => self.again(by, lost()).await?,
                    Err(_) => return Err(lost()),
                }
            }
        };
        outcome.await.unwrap_or_else(|status: Status| status.into_http())
    }

    /// Waits until somebody leads.
    async fn leader(&self, by: Instant) -> Result<Leader, Status> {
        if self.shared.store.leads() && !self.shared.stop.is_cancelled() {
            return Ok(Leader::Here);
        }
        let own = self.shared.store.raft_id();
        let mut leadership = self.shared.store.leadership();
        let is_other = |known: &Leadership| known.leader.as_ref().is_some_and(|(leader, _)| *leader != own);
        let found = async {
            match leadership.wait_for(|known| known.is_leader || is_other(known)).await {
                Ok(known) if known.is_leader => Ok(Leader::Here),
                Ok(known) => known.leader.clone().map(|(leader, member)| Leader::There(leader, member)).ok_or_else(nobody_leads),
                Err(_) => Err(stopping()),
            }
        };
        tokio::select! {
            found = tokio::time::timeout_at(by, found) => found.unwrap_or_else(|_| Err(nobody_leads())),
            () = self.shared.stop.cancelled() => Err(stopping()),
        }
    }

    /// Waits before another try, or gives up with what went wrong.
    async fn again(&self, by: Instant, why: Status) -> Result<(), Status> {
        if Instant::now() + RETRY >= by {
            return Err(why);
        }
        let mut leadership = self.shared.store.leadership();
        leadership.mark_unchanged();
        let _ = tokio::time::timeout(RETRY, leadership.changed()).await;
        Ok(())
    }

    async fn send(&self, link: &Link, leader: RaftId, parts: &Parts, body: Body, door: Door) -> Result<Response<Body>, Lost> {
        let mut request = Request::new(body);
        request.uri_mut().clone_from(&parts.uri);
        request.method_mut().clone_from(&parts.method);
        request.headers_mut().clone_from(&parts.headers);
        let connection = parts.extensions.get::<ConnectionInfo>();
        metadata::mark(request.headers_mut(), door, connection, &self.shared.local);
        tokio::select! {
            answer = link.send(request) => answer.map_err(|error| {
                tracing::debug!(leader, %error, "a call to the leader broke off");
                // hyper says so for what it never gave to the connection.
                Lost { unsent: error.is_canceled() || error.is_closed() }
            }),
            _ = self.gone(leader) => Err(Lost { unsent: false }),
        }
    }

    /// Resolves when nothing more is to be expected of this leader.
    fn gone(&self, leader: RaftId) -> Cut {
        let (leadership, stop) = (self.shared.store.leadership(), self.shared.stop.clone());
        Box::pin(async move {
            tokio::select! {
                () = somebody_else(leadership, leader) => lost(),
                () = stop.cancelled_owned() => stopping(),
            }
        })
    }
}

/// The leader did not answer.
struct Lost {
    /// It never got the request.
    unsent: bool,
}

async fn somebody_else(mut leadership: watch::Receiver<Leadership>, leader: RaftId) {
    let is_other = |known: &Leadership| known.leader.as_ref().is_some_and(|(now, _)| *now != leader);
    if leadership.wait_for(is_other).await.is_ok() {
        tokio::time::sleep(LAST_WORDS).await;
    }
}

fn second_hop() -> Status {
    not_leader(Code::ResourceExhausted, "the call was passed on once already, and this manager does not lead; try again")
}

fn changing() -> Status {
    Status::unavailable("the managers are changing their leader; try again")
}

fn nobody_leads() -> Status {
    Status::unavailable("no manager leads the cluster now; is a majority of the managers there? Try again")
}

fn lost() -> Status {
    Status::unavailable("the connection to the leader was lost before the answer was complete; look what was done, then try again")
}

fn stopping() -> Status {
    Status::unavailable("this manager stops; ask another")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_done_twice_is_sent_twice() {
        for path in ["Control/ListNodes", "Control/GetTask", "Dispatcher/UpdateTaskStatus", "CA/GetRootCACertificate"] {
            assert!(is_repeatable(&format!("/docker.swarmkit.v1.{path}")), "{path}");
        }
        assert!(is_repeatable("/skep.v1.Explanations/Get") && is_read("/skep.v1.Explanations/GetPlacement"));
        for path in ["Control/CreateService", "Control/UpdateNode", "Control/RemoveTask", "NodeCA/IssueNodeCertificate"] {
            assert!(!is_repeatable(&format!("/docker.swarmkit.v1.{path}")), "{path}");
        }
    }

    #[tokio::test]
    async fn a_request_is_kept_until_it_arrives_and_a_stream_is_sent_once() {
        let body = || Body::new(Full::new(Bytes::from_static(b"request")));
        let mut whole = Kept::of("/docker.swarmkit.v1.Control/ListNodes", body()).await.unwrap();
        for _ in 0..2 {
            assert_eq!(whole.take().unwrap().collect().await.unwrap().to_bytes(), "request");
        }
        let mut streamed = Kept::of("/docker.swarmkit.v1.LogBroker/PublishLogs", body()).await.unwrap();
        assert!(streamed.is_there() && streamed.take().is_some());
        assert!(!streamed.is_there() && streamed.take().is_none());
        let long = Body::new(Full::new(Bytes::from(vec![0; MAX_REQUEST + 1])));
        assert!(Kept::of("/docker.swarmkit.v1.Control/ListNodes", long).await.is_err());
    }
}
