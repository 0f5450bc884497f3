//! Every method there is, read from the protocol files, called by those who may call few of them: a method that is added is asked here
//! without anybody thinking of it.

use crate::support::{Cluster, PATIENCE};
use http::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use skep_types::NodeRole;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{Service as _, ServiceExt as _};

const PROTOCOLS: [(&str, &str); 2] = [
    ("docker.swarmkit.v1", include_str!("../../../api/proto/proto/docker/swarmkit/v1/swarmkit.proto")),
    ("skep.v1", include_str!("../../../api/proto/proto/skep/v1/skep.proto")),
];

/// How a node gets its first certificate.
const JOINING: [&str; 3] = [
    "/docker.swarmkit.v1.CA/GetRootCACertificate",
    "/docker.swarmkit.v1.NodeCA/IssueNodeCertificate",
    "/docker.swarmkit.v1.NodeCA/NodeCertificateStatus",
];

/// What a worker may call besides.
const WORKING: [&str; 7] = [
    "docker.swarmkit.v1.Dispatcher/",
    "docker.swarmkit.v1.LogBroker/",
    "docker.swarmkit.v1.ResourceAllocator/",
    "docker.swarmkit.v1.NodeCA/",
    "skep.v1.NetworkState/",
    "skep.v1.Tunnels/Listen",
    "skep.v1.Tunnels/Serve",
];

pub fn every_method() -> Vec<String> {
    let mut methods = Vec::new();
    for (package, text) in PROTOCOLS {
        let mut service = "";
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("service") => service = words.next().unwrap(),
                Some("rpc") => methods.push(format!("/{package}.{service}/{}", words.next().unwrap().split('(').next().unwrap())),
                _ => {}
            }
        }
    }
    assert!(methods.len() > 60, "{}", methods.len());
    methods
}

/// A message without fields, as it is on the wire.
const EMPTY: &[u8] = &[0; 5];

/// What the server says to a body, or to a request that is no call at all. The code is there if the answer is a refusal.
pub async fn ask(channel: &mut Channel, method: Method, path: &str, body: &[u8]) -> (http::StatusCode, Option<Code>) {
    ask_bytes(channel, method, path, bytes::Bytes::copy_from_slice(body)).await
}

/// The same without a copy.
pub async fn ask_bytes(channel: &mut Channel, method: Method, path: &str, body: bytes::Bytes) -> (http::StatusCode, Option<Code>) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/grpc").header("te", "trailers");
    let body = http_body_util::Full::new(body);
    let request = request.body(Body::new(body)).unwrap();
    let answer = tokio::time::timeout(PATIENCE, async { channel.ready().await.unwrap().call(request).await.unwrap() }).await;
    let answer = answer.unwrap_or_else(|_| panic!("{path} is not answered"));
    let code = answer.headers().get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
    (answer.status(), code)
}

/// The TLS of a client without certificate. Without SNI it asks for nobody.
pub fn anonymous_tls(sni: bool) -> Arc<ClientConfig> {
    let mut config = skep_ca::unverified_client().unwrap();
    config.enable_sni = sni;
    Arc::new(config)
}

/// A client without certificate that asks for the server by this name or address.
async fn anonymous(addr: SocketAddr, name: &'static str, sni: bool) -> Result<Channel, tonic::transport::Error> {
    let config = anonymous_tls(sni);
    let connect = tower::service_fn(move |_| {
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        async move {
            let stream = TcpStream::connect(addr).await?;
            let name = ServerName::try_from(name).expect("a name or an address");
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Endpoint::from_static("http://cluster").connect_with_connector(connect).await
}

fn may_join(path: &str) -> bool {
    JOINING.contains(&path)
}

fn may_work(path: &str) -> bool {
    may_join(path) || WORKING.iter().any(|service| path.trim_start_matches('/').starts_with(service))
}

/// Each method outside `may` is refused, and each within is not refused for who asks.
async fn check_all(channel: &mut Channel, who: &str, may: impl Fn(&str) -> bool) {
    for path in every_method() {
        let (_, code) = ask(channel, Method::POST, &path, EMPTY).await;
        let refused = match code {
            Some(Code::PermissionDenied) => true,
            // Services of the local socket only are not there at all.
            Some(Code::Unimplemented) => ["/skep.v1.Local", "/skep.v1.Certificates/"].iter().any(|service| path.starts_with(service)),
            _ => false,
        };
        assert_eq!(refused, !may(&path), "{who} calls {path}: {code:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_certificate_reaches_the_join_methods_and_nothing_else_by_whatever_name() {
    let cluster = Cluster::start().await;
    let ways = [("swarm-ca", true), ("localhost", true), ("swarm-worker", true), ("127.0.0.1", true), ("swarm-manager", false)];
    for (name, sni) in ways {
        let mut channel = anonymous(cluster.addr, name, sni).await.unwrap();
        check_all(&mut channel, name, may_join).await;
        // What is no call of ours gets no page, no file and no health check.
        let elsewhere = [
            "/",
            "/info",
            "/v1.43/info",
            "/metrics",
            "/debug/pprof/",
            "/docker.swarmkit.v1.Control",
            "/a/../docker.swarmkit.v1.CA/GetRootCACertificate",
            "//",
            "/%2e%2e",
        ];
        for path in elsewhere {
            for method in [Method::GET, Method::POST, Method::OPTIONS, Method::PUT, Method::DELETE] {
                let (status, code) = ask(&mut channel, method.clone(), path, EMPTY).await;
                assert!(code == Some(Code::Unimplemented) || status.is_client_error(), "{name} {method} {path}: {status} {code:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_refused_by_every_method_that_is_not_for_workers() {
    let cluster = Cluster::start().await;
    let worker = cluster.join(NodeRole::Worker).await;
    check_all(&mut cluster.channel(&worker).await, "a worker", may_work).await;
}
