//! The calls of one connection on their way to the routes.

use super::at_once::next_turn;
use super::deadline::deadline;
use super::unreadable::told;
use crate::authorize::ConnectionInfo;
use crate::forward::is_for_agents;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use std::convert::Infallible;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

/// Calls that are answered without waiting for anything: they may run in the task of their connection. All others could keep it from
/// its next call.
const BRIEF: [&str; 2] = ["/docker.swarmkit.v1.Dispatcher/Heartbeat", "/docker.swarmkit.v1.Dispatcher/UpdateTaskStatus"];

/// Tells each call whose connection it came on, and keeps its caller's deadline.
#[derive(Clone)]
pub(super) struct Calls {
    pub routes: Routes,
    pub connection: ConnectionInfo,
    /// Who does what is passed on for agents; `None`: whoever runs the connection.
    pub crowd: Option<Handle>,
}

type Outcome = Result<Response<Body>, Infallible>;

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    /// Small beside what it makes: it lives as long as a stream.
    type Future = BoxFuture<'static, Outcome>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.connection.clone());
        // Routes are always ready.
        let mut routes = self.routes.clone();
        let path = request.uri().path();
        let is_brief = BRIEF.contains(&path);
        let crowd = self.crowd.as_ref().filter(|_| !is_brief && is_for_agents(path)).cloned();
        let limit = deadline(request.headers());
        Box::pin(async move {
            if !is_brief {
                next_turn().await;
            }
            let answer = async move {
                match crowd {
                    None => routes.call(request).await,
                    Some(crowd) => {
                        let answering = AbortOnDropHandle::new(crowd.spawn(async move { routes.call(request).await }));
                        answering.await.unwrap_or_else(|_| Ok(Status::unavailable("this manager stops; ask another").into_http()))
                    }
                }
            };
            match limit {
                None => answer.await.map(told),
                Some(limit) => match tokio::time::timeout(limit, answer).await {
                    Ok(answer) => answer.map(told),
                    Err(_) => Ok(Status::cancelled("Timeout expired").into_http()),
                },
            }
        })
    }
}
