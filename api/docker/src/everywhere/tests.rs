use super::*;
use crate::hijack::{Hijack, Sessions};
use crate::{ApiVersion, Connection};
use async_trait::async_trait;
use axum::response::IntoResponse as _;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use skep_types::NodeId;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

const LONG: Duration = Duration::from_secs(60);

/// A server that makes an answer of each request, as axum's would.
fn served<F, Fut>(answer: F) -> DuplexStream
where
    F: Fn(Request<Body>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response> + Send + 'static,
{
    let (client, server) = tokio::io::duplex(1024);
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Sessions::default());
        let answering = answer(request.map(Body::new));
        async move { Ok::<_, Infallible>(answering.await) }
    });
    tokio::spawn(async move {
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).with_upgrades();
        let _ = serving.await;
    });
    client
}

/// A node that says what it was asked, and repeats what it is told where it may.
struct Echo;

async fn echo(request: Request<Body>) -> Response {
    let (mut parts, body) = request.into_parts();
    if parts.headers.contains_key(header::UPGRADE) {
        let hijack = Hijack::of(&mut parts);
        return hijack.answer(HeaderValue::from_static("x/raw"), body, |mut input, mut output| async move {
            let mut said = Vec::new();
            input.read_to_end(&mut said).await.unwrap();
            output.write_all(b"after the end: ").await.unwrap();
            output.write_all(&said).await.unwrap();
            output.shutdown().await.unwrap();
        });
    }
    let body = body.collect().await.unwrap().to_bytes();
    let seen: Vec<_> = parts.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
    let text = format!("{} {} {} {}", parts.method, parts.uri, seen.join(","), String::from_utf8_lossy(&body));
    ([(header::ETAG, "kept")], text).into_response()
}

#[async_trait]
impl Reach for Echo {
    async fn dial(&self, node: &NodeId) -> Result<Box<dyn Connection>, ApiError> {
        if *node != NodeId::for_test(1) {
            return Err(ApiError::unavailable("node is down"));
        }
        Ok(Box::new(served(echo)))
    }
}

#[tokio::test]
async fn a_request_and_its_answer_are_passed_on_as_they_are() {
    let request = Request::builder()
        .method("PUT")
        .uri("/containers/web/archive?path=%2Ftmp")
        .header("x-registry-auth", "y")
        .header(header::CONNECTION, "keep-alive")
        .header(header::TRANSFER_ENCODING, "chunked")
        .extension(ApiVersion::v1(44))
        .body(Body::from("all of it"))
        .unwrap();
    let answer = pass::pass(&Echo, &NodeId::for_test(1), "/containers/full/archive", request).await.unwrap();
    assert_eq!((answer.status(), &answer.headers()[header::ETAG]), (StatusCode::OK, &HeaderValue::from_static("kept")));
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(text.starts_with("PUT /v1.44/containers/full/archive?path=%2Ftmp ") && text.ends_with(" all of it"), "{text}");
    assert!(text.contains("x-registry-auth=y") && text.contains("content-length=9") && !text.contains("keep-alive"), "{text}");

    let refused = pass::pass(&Echo, &NodeId::for_test(2), "/containers/x/json", Request::new(Body::empty())).await.unwrap_err();
    assert_eq!(refused, ApiError::unavailable("node is down"));
}

#[tokio::test]
async fn a_stream_goes_both_ways_and_the_client_may_end_its_half() {
    let mut client = served(|request| async {
        pass::pass(&Echo, &NodeId::for_test(1), "/exec/x/start", request).await.unwrap_or_else(|error| error.into_response())
    });
    let talking = async {
        let head = "POST /exec/x/start HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: tcp\r\ncontent-length: 2\r\n\r\n{}";
        // What comes behind the request belongs to the stream.
        client.write_all(format!("{head}early, ").as_bytes()).await.unwrap();
        client.write_all(b"late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = tokio::time::timeout(LONG, talking).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 101 ") && text.contains("upgrade: tcp"), "{text}");
    assert!(text.ends_with("\r\n\r\nafter the end: early, late"), "{text}");
}

#[tokio::test]
async fn an_answer_longer_than_it_may_be_is_refused() {
    let asked = pass::get(&Echo, &NodeId::for_test(1), "/v1.44/containers/json", 1 << 20).await.unwrap();
    assert!(asked.starts_with(b"GET /v1.44/containers/json "));
    let refused = pass::get(&Echo, &NodeId::for_test(1), "/v1.44/containers/json", 4).await.unwrap_err();
    assert_eq!(refused.status(), 503);
}

#[test]
fn a_path_goes_on_as_it_came() {
    let behind = |path: &str| behind_id(&path.parse().unwrap()).to_owned();
    assert_eq!((behind("/containers/web/logs?x=1"), behind("/containers/web")), ("/logs".into(), String::new()));
    assert_eq!(behind("/exec/x/start"), "/start");
    assert_eq!(behind("/containers/a%2Fb/..%2f%3f/x"), "/..%2f%3f/x");
}

#[test]
fn what_is_a_node_s_own_is_not_changed_through_the_cluster() {
    let refused = |method: Method, path: &str| refusal(&method, &path.parse().unwrap()).is_some();
    assert!(refused(Method::POST, "/networks/net/connect") && refused(Method::POST, "/networks/net/disconnect"));
    assert!(!refused(Method::DELETE, "/networks/connect") && !refused(Method::POST, "/networks/create"));
    for path in ["/images/create?fromImage=x", "/images/prune", "/volumes/create", "/volumes/x", "/build", "/commit"] {
        assert!(refused(Method::POST, path) || refused(Method::DELETE, path), "{path}");
    }
    assert!(!refused(Method::GET, "/images/json") && !refused(Method::POST, "/services/create") && !refused(Method::POST, "/auth"));
}
