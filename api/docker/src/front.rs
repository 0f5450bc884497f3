//! What is the same for every request: the version in the path, headers, unknown paths, `OPTIONS`.

use crate::{ApiError, ApiVersion, Backend};
use crate::{config, container, distribution, events, exec, image, network, node, secret, service, swarm, system, task, volume};
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use tower::ServiceExt as _;

/// The whole API on a backend. Clones share it.
#[derive(Clone)]
pub struct Front {
    routes: Router,
    server: HeaderValue,
}

impl Front {
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        let version = backend.node.engine_version();
        let server = HeaderValue::from_str(&format!("Docker/{version} (linux)")).unwrap_or_else(|_| HeaderValue::from_static("Docker"));
        let routes = Router::new()
            .merge(system::routes())
            .merge(swarm::routes())
            .merge(node::routes())
            .merge(secret::routes())
            .merge(config::routes())
            .merge(network::routes())
            .merge(service::routes())
            .merge(task::routes())
            .merge(container::routes())
            .merge(exec::routes())
            .merge(image::routes())
            .merge(volume::routes())
            .merge(distribution::routes())
            .merge(events::routes())
            .fallback(unknown)
            .method_not_allowed_fallback(unknown)
            .with_state(backend);
        Self { routes, server }
    }

    /// Answers one request.
    pub async fn call(self, request: Request<Body>) -> Response {
        let Self { routes, server } = self;
        let mut response = match versioned(request) {
            Ok(request) if request.method() == Method::OPTIONS => StatusCode::OK.into_response(),
            Ok(request) => match routes.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(refusal) => refusal.into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(header::SERVER, server);
        let version = HeaderValue::from_str(&ApiVersion::MAX.to_string()).unwrap_or_else(|_| HeaderValue::from_static("1.50"));
        headers.insert(HeaderName::from_static("api-version"), version);
        headers.insert(HeaderName::from_static("ostype"), HeaderValue::from_static("linux"));
        headers.insert(HeaderName::from_static("docker-experimental"), HeaderValue::from_static("false"));
        response
    }
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
