//! The calls of one connection on their way to the routes.

use super::at_once::next_turn;
use super::deadline::deadline;
use super::unreadable::told;
use crate::authorize::ConnectionInfo;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use std::convert::Infallible;
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
        let is_brief = BRIEF.contains(&request.uri().path());
        Box::pin(async move {
            if !is_brief {
                next_turn().await;
            }
            match deadline(request.headers()) {
                None => routes.call(request).await.map(told),
                Some(limit) => match tokio::time::timeout(limit, routes.call(request)).await {
                    Ok(answer) => answer.map(told),
                    Err(_) => Ok(Status::cancelled("Timeout expired").into_http()),
                },
            }
        })
    }
}
