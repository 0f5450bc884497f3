use super::*;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::TokioExecutor;
use skep_ca::Manners;
use skep_proto::v1::health_server::{Health, HealthServer};
use skep_proto::v1::{HealthCheckRequest, HealthCheckResponse};
use tonic::Status;

/// Does what the caller asks for in `x-do`.
struct Moody;

#[tonic::async_trait]
impl Health for Moody {
    async fn check(&self, request: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let info = request.extensions().get::<ConnectionInfo>().expect("the connection is known");
        assert!(info.addr.is_some() && info.peer.is_none());
        match request.metadata().get("x-do").map(|what| what.as_bytes()) {
            Some(b"wait") => std::future::pending().await,
            Some(b"panic") => panic!("asked for"),
            _ => Ok(tonic::Response::new(HealthCheckResponse::default())),
        }
    }
}

/// A connection with such a server, which serves until the token is cancelled.
async fn connected() -> (SendRequest<Full<Bytes>>, CancellationToken, JoinSet<()>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let addr = "192.0.2.1:9".parse().ok();
    let routes = Routes::new(HealthServer::new(Moody)).prepare();
    let calls = Calls { routes, connection: ConnectionInfo { peer: None, addr }, crowd: None };
    let (stop, mut both) = (CancellationToken::new(), JoinSet::new());
    let culprit = Culprit::new(&Manners::default(), &calls.connection);
    both.spawn(Conversation::new(&http(), far, calls, culprit, &stop));
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
    both.spawn(async { connection.await.unwrap() });
    (sender, stop, both)
}

fn question(headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::post("http://manager/docker.swarmkit.v1.Health/Check").header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // The frame of an empty message.
    request.body(Full::new(Bytes::from_static(&[0; 5]))).unwrap()
}

/// The status, wherever it is.
async fn status(answer: Response<Incoming>) -> String {
    let head = answer.headers().get("grpc-status").cloned();
    let end = answer.into_body().collect().await.unwrap();
    let status = head.or_else(|| end.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()));
    status.unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_call_ends_at_its_callers_deadline() {
    let (mut sender, _stop, _both) = connected().await;
    let late = sender.send_request(question(&[("x-do", "wait"), ("grpc-timeout", "20m")])).await.unwrap();
    assert_eq!(status(late).await, "1");
    let calm = sender.send_request(question(&[("grpc-timeout", "1H")])).await.unwrap();
    assert_eq!(status(calm).await, "0");
}

#[tokio::test]
async fn a_call_that_panics_ends_alone() {
    let (mut sender, _stop, _both) = connected().await;
    let waiting = sender.send_request(question(&[("x-do", "wait")]));
    sender.send_request(question(&[("x-do", "panic")])).await.unwrap_err();
    assert_eq!(status(sender.send_request(question(&[])).await.unwrap()).await, "0");
    drop(waiting);
}

#[tokio::test]
async fn after_stop_calls_under_way_end_and_the_connection_with_them() {
    let (mut sender, stop, mut both) = connected().await;
    let waiting = tokio::spawn(sender.send_request(question(&[("x-do", "wait"), ("grpc-timeout", "200m")])));
    // The second call's answer shows that the first has arrived.
    assert_eq!(status(sender.send_request(question(&[])).await.unwrap()).await, "0");
    stop.cancel();
    assert_eq!(status(waiting.await.unwrap().unwrap()).await, "1");
    while let Some(ended) = both.join_next().await {
        ended.unwrap();
    }
}
