//! What is the same for every request: the version in the path, headers, unknown paths, `OPTIONS`.

use crate::everywhere::{self, Everywhere};
use crate::tasks_only::{self, TasksOnly};
use crate::{ApiError, ApiVersion, Backend, Containers, Reach};
use crate::{config, container, distribution, events, exec, image, network, node, secret, service, swarm, system, task, volume};
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use std::sync::Arc;
use tower::ServiceExt as _;

/// The API on a backend. Clones share it.
#[derive(Clone)]
pub struct Front {
    routes: Router,
    server: HeaderValue,
    scope: Scope,
    /// Where it is looked for what a request means.
    containers: Arc<dyn Containers>,
}

/// What a front is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// A node and its cluster.
    Node,
    /// The cluster as one host.
    Cluster,
    /// Containers of a node's tasks, for other hosts.
    Tasks,
}

impl Front {
    /// Of a node and its cluster: all there is.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        let own = Router::new().merge(container::routes()).merge(exec::routes());
        let routes = common().merge(own);
        Self::with(routes, backend, Scope::Node)
    }

    /// The cluster as one host: containers are those of tasks on all nodes.
    #[must_use]
    pub fn of_cluster(backend: Backend, reach: Arc<dyn Reach>) -> Self {
        let routes = common().merge(everywhere::routes(Everywhere { backend: backend.clone(), reach }));
        Self::with(routes, backend, Scope::Cluster)
    }

    /// What other hosts may ask of this node: about the containers of its tasks.
    #[must_use]
    pub fn of_tasks(backend: Backend) -> Self {
        let routes = Router::new().merge(container::routes()).merge(exec::routes());
        Self::with(routes, backend, Scope::Tasks)
    }

    fn with(routes: Router<Backend>, backend: Backend, scope: Scope) -> Self {
        let version = backend.node.engine_version();
        let server = HeaderValue::from_str(&format!("Docker/{version} (linux)")).unwrap_or_else(|_| HeaderValue::from_static("Docker"));
        let containers = Arc::clone(&backend.containers);
        let routes = routes.fallback(unknown).method_not_allowed_fallback(unknown).with_state(backend);
        Self { routes, server, scope, containers }
    }

    /// The request as the routes know it, or why they are not asked.
    async fn admitted(&self, request: Request<Body>) -> Result<Request<Body>, ApiError> {
        let mut request = versioned(request)?;
        let (method, uri) = (request.method(), request.uri());
        match self.scope {
            Scope::Node => {}
            Scope::Cluster => {
                if let Some(refusal) = everywhere::refusal(method, uri) {
                    return Err(everywhere::after_reading(request.into_body(), refusal).await);
                }
            }
            Scope::Tasks => {
                if let Some(meant) = tasks_only::admit(method, uri)? {
                    tasks_only::check(&meant, |id| self.containers.is_made_by_hand(id))?;
                }
                request.extensions_mut().insert(TasksOnly);
            }
        }
        Ok(request)
    }

    /// Answers one request.
    pub async fn call(self, request: Request<Body>) -> Response {
        let response = match self.admitted(request).await {
            Ok(request) if request.method() == Method::OPTIONS => StatusCode::OK.into_response(),
            Ok(request) => match self.routes.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(refusal) => refusal.into_response(),
        };
        self.signed(response)
    }

    /// Answers a request that is not let in.
    pub(crate) fn refuse(self, refusal: ApiError) -> Response {
        self.signed(refusal.into_response())
    }

    /// With the headers of every answer.
    fn signed(self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        headers.insert(header::SERVER, self.server);
        let version = HeaderValue::from_str(&ApiVersion::MAX.to_string()).unwrap_or_else(|_| HeaderValue::from_static("1.50"));
        headers.insert(HeaderName::from_static("api-version"), version);
        headers.insert(HeaderName::from_static("ostype"), HeaderValue::from_static("linux"));
        headers.insert(HeaderName::from_static("docker-experimental"), HeaderValue::from_static("false"));
        response
    }
}

/// All but containers.
fn common() -> Router<Backend> {
    Router::new()
        .merge(system::routes())
        .merge(swarm::routes())
        .merge(node::routes())
        .merge(secret::routes())
        .merge(config::routes())
        .merge(network::routes())
        .merge(service::routes())
        .merge(task::routes())
        .merge(image::routes())
        .merge(volume::routes())
        .merge(distribution::routes())
        .merge(events::routes())
}

/// Also for a method that a known path does not have, as dockerd.
async fn unknown() -> ApiError {
    ApiError::not_found("page not found")
}

/// Takes the version out of the path and notes it for [`ApiVersion`] as an argument.
fn versioned(mut request: Request<Body>) -> Result<Request<Body>, ApiError> {
    let Some((version, rest)) = split(request.uri()) else { return Ok(request) };
    let (min, max) = (ApiVersion::MIN, ApiVersion::MAX);
    if version > max {
        return Err(ApiError::invalid(format!("client version {version} is too new. Maximum supported API version is {max}")));
    }
    if version < min {
        return Err(ApiError::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {min}, please upgrade your client to a newer version"
        )));
    }
    let uri: Uri = rest.parse().map_err(|_| ApiError::invalid("the path cannot be read"))?;
    *request.uri_mut() = uri;
    request.extensions_mut().insert(version);
    Ok(request)
}

/// `/v1.44/info?x` to 1.44 and `/info?x`.
fn split(uri: &Uri) -> Option<(ApiVersion, String)> {
    let (version, path) = uri.path().strip_prefix("/v")?.split_once('/')?;
    let version = ApiVersion::parse(version)?;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some((version, format!("/{path}{query}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(path: &str) -> Result<(String, Option<ApiVersion>), ApiError> {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        versioned(request).map(|request| (request.uri().to_string(), request.extensions().get().copied()))
    }

    #[test]
    fn the_version_is_taken_out_of_the_path() {
        assert_eq!(checked("/v1.24/info?a=b").unwrap(), ("/info?a=b".into(), Some(ApiVersion::v1(24))));
        assert_eq!(checked("/info").unwrap(), ("/info".into(), None));
        // No version: a path of its own, which is unknown.
        assert_eq!(checked("/volumes/v1.24").unwrap(), ("/volumes/v1.24".into(), None));
        assert!(checked("/v1.51/info").unwrap_err().message.contains("is too new. Maximum supported API version is 1.50"));
        assert!(checked("/v1.23/info").unwrap_err().message.contains("is too old. Minimum supported API version is 1.24, please upgrade"));
    }
}
