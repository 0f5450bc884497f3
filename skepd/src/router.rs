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
#[derive(Clone, Default)]
pub struct Routes(Arc<ArcSwap<Option<axum::Router>>>);

impl Routes {
    pub fn set(&self, routes: tonic::service::Routes) {
        self.0.store(Arc::new(Some(routes.prepare().into_axum_router())));
    }

    pub fn clear(&self) {
        self.0.store(Arc::new(None));
    }

    /// A router that asks the present routes for each call and says `otherwise` while there are none.
    pub fn router(&self, otherwise: &'static str) -> axum::Router {
        axum::Router::new().fallback_service(Dynamic { routes: self.clone(), otherwise })
    }
}

#[derive(Clone)]
struct Dynamic {
    routes: Routes,
    otherwise: &'static str,
}

impl Service<http::Request<axum::body::Body>> for Dynamic {
    type Response = http::Response<axum::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<axum::body::Body>) -> Self::Future {
        match self.routes.0.load().as_ref() {
            Some(router) => {
                let router = router.clone();
                Box::pin(async move { router.oneshot(request).await })
            }
            None => {
                let refusal = tonic::Status::failed_precondition(self.otherwise).into_http::<axum::body::Body>();
                Box::pin(async move { Ok(refusal) })
            }
        }
    }
}
