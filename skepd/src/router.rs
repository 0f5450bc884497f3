//! The services of the local socket and the cluster port, which change while the daemon runs: a node that becomes a manager
//! answers `docker.swarmkit.v1` from then on, on listeners that stay open.

use arc_swap::ArcSwap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{Service, ServiceExt};

/// Routes that can be replaced; a call that began keeps the routes it began with.
#[derive(Clone)]
pub struct Routes(Arc<ArcSwap<State>>);

enum State {
    Open(axum::Router),
    /// Every call is answered with FAILED_PRECONDITION and these words.
    Closed(&'static str),
    /// The same, but for one service.
    ClosedBut(&'static str, &'static str, axum::Router),
}

impl Routes {
    pub fn closed(why: &'static str) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(State::Closed(why))))
    }

    pub fn set(&self, routes: tonic::service::Routes) {
        self.0.store(Arc::new(State::Open(routes.prepare().into_axum_router())));
    }

    pub fn close(&self, why: &'static str) {
        self.0.store(Arc::new(State::Closed(why)));
    }

    /// Closed to all but the service of this name (`package.Service`), which is in the routes.
    pub fn close_but(&self, why: &'static str, service: &'static str, routes: tonic::service::Routes) {
        self.0.store(Arc::new(State::ClosedBut(why, service, routes.prepare().into_axum_router())));
    }

    /// A router that asks the present routes for each call.
    pub fn router(&self) -> axum::Router {
        axum::Router::new().fallback_service(Dynamic(self.clone()))
    }
}

/// Whether a call's path, `/package.Service/Method`, is of the service.
fn is_of(path: &str, service: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(service)).is_some_and(|rest| rest.starts_with('/'))
}

#[derive(Clone)]
struct Dynamic(Routes);

impl Service<http::Request<axum::body::Body>> for Dynamic {
    type Response = http::Response<axum::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<axum::body::Body>) -> Self::Future {
        match &**self.0.0.load() {
            State::Open(router) => {
                let router = router.clone();
                Box::pin(async move { router.oneshot(request).await })
            }
            State::ClosedBut(_, service, router) if is_of(request.uri().path(), service) => {
                let router = router.clone();
                Box::pin(async move { router.oneshot(request).await })
            }
            State::Closed(why) | State::ClosedBut(why, ..) => {
                let refusal = tonic::Status::failed_precondition(*why).into_http::<axum::body::Body>();
                Box::pin(async move { Ok(refusal) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_of_a_service_by_its_path() {
        assert!(is_of("/docker.swarmkit.v1.ResourceAllocator/AttachNetwork", "docker.swarmkit.v1.ResourceAllocator"));
        for path in
            ["/docker.swarmkit.v1.Control/ListNodes", "/docker.swarmkit.v1.ResourceAllocatorX/A", "docker.swarmkit.v1.ResourceAllocator/A"]
        {
            assert!(!is_of(path, "docker.swarmkit.v1.ResourceAllocator"), "{path}");
        }
    }
}
