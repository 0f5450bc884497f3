//! Connections to one other manager.

use crate::serve::{CALL_WINDOW, CONNECTION_WINDOW};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, Version};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use skep_ca::{ConnectError, Connector, SecurityConfig};
use skep_store::Member;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;

/// For a connection to stand, TLS included. Short: while a dead manager is waited for, nobody else is asked.
const DIAL_LIMIT: Duration = Duration::from_secs(1);
/// How often the other end is asked whether it is there, if something is under way.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Calls on one connection; below what servers allow (256), so that none waits for another's end. More make another connection.
const MOST_CALLS: usize = 200;
/// The authority of calls between managers, as genuine nodes name it.
const AUTHORITY: &str = "swarm-manager";

/// Whom a connection is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The CN its certificate must have; `None`: any manager of the cluster.
    pub node: Option<String>,
    /// `host:port`.
    pub addr: String,
}

impl Target {
    /// Whichever manager is there.
    pub(crate) fn anyone(addr: &str) -> Self {
        Self { node: None, addr: addr.to_owned() }
    }
}

/// Why there is no connection to a manager.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("could not connect to the manager at {addr}")]
    Tcp { addr: String, source: io::Error },
    #[error("no connection to the manager at {addr} within {} ms", DIAL_LIMIT.as_millis())]
    TimedOut { addr: String },
    #[error("no secure connection to the manager at {addr}")]
    Tls { addr: String, source: Box<ConnectError> },
    #[error("the manager at {addr} is node {found}, not {wanted}")]
    Stranger { addr: String, found: String, wanted: String },
    #[error("no HTTP/2 with the manager at {addr}")]
    Http { addr: String, source: hyper::Error },
    #[error("the connection to the manager at {addr} was given up")]
    GivenUp { addr: String },
}

/// One HTTP/2 connection. Clones share it; with the last of them, and of the answers it carries, it closes.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    sender: SendRequest<Body>,
    calls: AtomicUsize,
    /// Of the identity it was made with: after a renewal others are made.
    generation: u64,
    _driver: AbortOnDropHandle<()>,
}

impl Link {
    /// Connects and makes sure of who is there. `silence` is how long it may be quiet before the connection counts as dead.
    pub(crate) async fn dial(connector: &Connector, target: &Target, silence: Duration, generation: u64) -> Result<Self, DialError> {
        let addr = || target.addr.clone();
        let dialling = async {
            let tcp = TcpStream::connect(&target.addr).await.map_err(|source| DialError::Tcp { addr: addr(), source })?;
            // Small messages back and forth: never wait for more to send.
            tcp.set_nodelay(true).map_err(|source| DialError::Tcp { addr: addr(), source })?;
            let (tls, peer) = connector.connect(tcp).await.map_err(|source| DialError::Tls { addr: addr(), source: Box::new(source) })?;
            let found = peer.map(|peer| peer.node_id.to_string()).unwrap_or_default();
            if let Some(wanted) = target.node.as_ref().filter(|wanted| **wanted != found) {
                return Err(DialError::Stranger { addr: addr(), found, wanted: wanted.clone() });
            }
            let mut builder = Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(silence);
            builder.initial_stream_window_size(CALL_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
            builder.handshake(TokioIo::new(tls)).await.map_err(|source| DialError::Http { addr: addr(), source })
        };
        let dialled = tokio::time::timeout(DIAL_LIMIT, dialling).await;
        let (sender, connection) = dialled.map_err(|_| DialError::TimedOut { addr: addr() })??;
        let peer = target.addr.clone();
        let driver = tokio::spawn(async move {
            match connection.await {
                Ok(()) => tracing::debug!(%peer, "connection to manager closed"),
                Err(error) => tracing::debug!(%peer, %error, "connection to manager broke"),
            }
        });
        Ok(Self(Arc::new(Inner { sender, calls: AtomicUsize::new(0), generation, _driver: AbortOnDropHandle::new(driver) })))
    }

    fn is_usable(&self, generation: u64) -> bool {
        !self.0.sender.is_closed() && self.0.generation == generation
    }

    fn has_room(&self) -> bool {
        self.0.calls.load(Ordering::Relaxed) < MOST_CALLS
    }

    /// Sends one request. The path is kept, scheme and authority become those between managers.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, hyper::Error> {
        let under_way = UnderWay::new(self.clone());
        let mut sender = self.0.sender.clone();
        sender.ready().await?;
        let answer = sender.send_request(addressed(request)).await?;
        Ok(answer.map(|body| Body::new(Answer { body, _under_way: under_way })))
    }
}

fn addressed(mut request: Request<Body>) -> Request<Body> {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme("https").authority(AUTHORITY).path_and_query(path).build();
    *request.uri_mut() = uri.expect("scheme, authority and path are all there");
    *request.version_mut() = Version::HTTP_2;
    request
}

/// A call that holds its place on a link until its answer has ended.
struct UnderWay(Link);

impl UnderWay {
    fn new(link: Link) -> Self {
        link.0.calls.fetch_add(1, Ordering::Relaxed);
        Self(link)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Answer {
    body: Incoming,
    _under_way: UnderWay,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Generated clients speak through this.
#[derive(Clone)]
pub(crate) struct LinkService(pub(crate) Link);

impl tower::Service<Request<Body>> for LinkService {
    type Response = Response<Body>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, hyper::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let link = self.0.clone();
        Box::pin(async move { link.send(request).await })
    }
}

type Dialling = Shared<BoxFuture<'static, Result<Link, Arc<DialError>>>>;

/// The connections to one manager at one address: made when needed, shared by all calls.
pub(crate) struct Links {
    target: Target,
    silence: Duration,
    security: SecurityConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    links: Vec<Link>,
    /// One at a time. It goes on when the call that began it is given up: raft's calls are shorter than a handshake may be.
    dialling: Option<Dialling>,
}

impl Links {
    pub(crate) fn new(security: &SecurityConfig, target: Target, silence: Duration) -> Self {
        Self { target, silence, security: security.clone(), state: Mutex::default() }
    }

    /// Whether it is meant for this member, where it is now.
    pub(crate) fn leads_to(&self, member: &Member) -> bool {
        self.target.addr == member.addr && self.target.node.as_ref() == Some(&member.node_id)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that stands and has room for one more call.
    pub(crate) async fn get(&self) -> Result<Link, Arc<DialError>> {
        let generation = *self.security.changes().borrow();
        let dialling = {
            let mut state = self.lock();
            state.links.retain(|link| link.is_usable(generation));
            if let Some(link) = state.links.iter().find(|link| link.has_room()) {
                return Ok(link.clone());
            }
            state.dialling.get_or_insert_with(|| self.dial(generation)).clone()
        };
        let outcome = dialling.clone().await;
        let mut state = self.lock();
        // The first to come takes the outcome in.
        if state.dialling.as_ref().is_some_and(|now| now.ptr_eq(&dialling)) {
            state.dialling = None;
            if let Ok(link) = &outcome {
                state.links.push(link.clone());
            }
        }
        outcome
    }

    fn dial(&self, generation: u64) -> Dialling {
        let (connector, target, silence) = (Connector::node(&self.security), self.target.clone(), self.silence);
        let addr = target.addr.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move { Link::dial(&connector, &target, silence, generation).await }));
        async move { task.await.unwrap_or(Err(DialError::GivenUp { addr })).map_err(Arc::new) }.boxed().shared()
    }
}
