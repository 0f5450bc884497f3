//! A request as it came to the node that it is about, and the answer as it is to the client.

use crate::hijack::Sessions;
use crate::{ApiError, ApiVersion, ErrorKind, Reach};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skep_types::NodeId;

/// Of this connection and no other (RFC 9110 §7.6.1). How long a body is, is said anew by who sends it.
const OF_ONE_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// What a node calls itself in requests that come this way: nobody looks at it.
const HOST: HeaderValue = HeaderValue::from_static("skep");

fn broken(error: &hyper::Error) -> ApiError {
    ApiError::unavailable(format!("the connection to the node broke off: {error}"))
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    headers.iter().filter(|(name, _)| !OF_ONE_HOP.contains(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// # Errors
/// 503 if the node cannot be reached, or is lost before it answers.
pub(super) async fn pass(reach: &dyn Reach, node: &NodeId, path: &str, request: Request<Body>) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.headers.get(header::UPGRADE).cloned().zip(parts.extensions.remove::<OnUpgrade>());
    let sessions: Sessions = parts.extensions.get().cloned().unwrap_or_default();
    let version = parts.extensions.get().copied().unwrap_or(ApiVersion::MAX);
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut onward = Request::builder().method(parts.method).uri(format!("/v{version}{path}{query}"));
    if let Some(headers) = onward.headers_mut() {
        *headers = passed_on(&parts.headers);
        headers.insert(header::HOST, HOST);
        if let Some((protocol, _)) = &upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, protocol.clone());
        }
    }
    let connection = match reach.dial(node).await {
        Ok(connection) => connection,
        Err(refusal) => return Err(super::after_reading(body, refusal).await),
    };
    let onward = onward.body(body).map_err(|_| ApiError::not_found("page not found"))?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await.map_err(|error| broken(&error))?;
    // It lasts as long as the answer, or until the server ends.
    sessions.spawn(async move {
        if let Err(error) = driver.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node broke off");
        }
    });
    let mut answer = sender.send_request(onward).await.map_err(|error| broken(&error))?;
    let is_upgraded = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let far = is_upgraded.then(|| hyper::upgrade::on(&mut answer));
    let (answered, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = answered.status;
    *response.headers_mut() = passed_on(&answered.headers);
    if let (Some(far), Some((protocol, near))) = (far, upgrade) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(header::UPGRADE, protocol);
        *response.body_mut() = Body::empty();
        sessions.spawn(join(near, far));
    } else if is_upgraded {
        return Err(ApiError::internal("the node changed the protocol, which was not asked for"));
    }
    Ok(response)
}

/// Both ways; each may end by itself.
async fn join(near: OnUpgrade, far: OnUpgrade) {
    match tokio::try_join!(near, far) {
        Ok((near, far)) => {
            let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
            if let Err(error) = tokio::io::copy_bidirectional(&mut near, &mut far).await {
                tracing::debug!(%error, "a stream from a node broke off");
            }
        }
        Err(error) => tracing::debug!(%error, "a client or a node went away before their stream began"),
    }
}

/// The body of a node's answer to a question, which may have `most` bytes.
///
/// # Errors
/// What the node answers if it is not 200, in its words.
pub(super) async fn get(reach: &dyn Reach, node: &NodeId, path: &str, most: usize) -> Result<Bytes, ApiError> {
    let request = Request::builder().method(Method::GET).uri(path).header(header::HOST, HOST);
    let request = request.body(Body::empty()).map_err(|_| ApiError::not_found("page not found"))?;
    let connection = reach.dial(node).await?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await.map_err(|error| broken(&error))?;
    let asking = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), most).collect().await;
        let body = body.map_err(|error| ApiError::unavailable(format!("its answer did not come whole: {error}")))?.to_bytes();
        match status {
            StatusCode::OK => Ok(body),
            status => Err(refusal(status, &body)),
        }
    };
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        answer = &mut asking => return answer,
        // Whether it broke, the question hears.
        _ = driver => {}
    }
    asking.await
}

fn refusal(status: StatusCode, body: &[u8]) -> ApiError {
    let message = serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|body| Some(body.get("message")?.as_str()?.to_owned()));
    let kind = match status {
        StatusCode::BAD_REQUEST => ErrorKind::InvalidArgument,
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::NOT_IMPLEMENTED => ErrorKind::Unimplemented,
        StatusCode::SERVICE_UNAVAILABLE => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, message.unwrap_or_else(|| format!("it answered {status}")))
}
