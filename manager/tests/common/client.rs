//! Who talks to a manager.

use super::PATIENCE;
use hyper_util::rt::TokioIo;
use skep_ca::{Connector, Identity, NodeKey, RootCa, SecurityConfig};
use skep_proto::v1::{self, node_ca_client::NodeCaClient};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// A channel to a manager.
pub async fn dial(addr: SocketAddr, connector: Connector) -> Result<Channel, tonic::transport::Error> {
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            let (stream, _) = connector.connect(stream).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://swarm-manager").connect_with_connector(connect).await
}

/// A channel over a local socket, without any certificate.
pub async fn dial_local(socket: PathBuf) -> Channel {
    let connector = Connector::local().unwrap();
    let connect = tower::service_fn(move |_| {
        let (socket, connector) = (socket.clone(), connector.clone());
        async move {
            let stream = UnixStream::connect(socket).await?;
            let (stream, _) = connector.connect(stream).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap()
}

/// A new certificate, as a node's own skepd asks for it: with a token for a new node, with an empty one for its own renewal.
pub async fn enrol(channel: Channel, root: &RootCa, token: &str) -> SecurityConfig {
    let mut ca = NodeCaClient::new(channel);
    let key = NodeKey::generate().unwrap();
    let csr = key.request().unwrap().into_bytes();
    let request = v1::IssueNodeCertificateRequest { csr: csr.clone(), token: token.into(), ..Default::default() };
    let issued = ca.issue_node_certificate(request).await.unwrap().into_inner();
    // A renewal shows the former one until it is done.
    let chain = loop {
        let request = v1::NodeCertificateStatusRequest { node_id: issued.node_id.clone() };
        let answer = ca.node_certificate_status(request).await.unwrap().into_inner();
        let certificate = answer.certificate.unwrap();
        if certificate.csr == csr && !certificate.certificate.is_empty() {
            assert_eq!(answer.status.unwrap().state, v1::issuance_status::State::Issued as i32);
            break String::from_utf8(certificate.certificate).unwrap();
        }
    };
    let identity = Identity::new(key, &chain, root.bundle().clone(), SystemTime::now()).unwrap();
    assert_eq!(identity.node_id().as_str(), issued.node_id);
    SecurityConfig::new(identity).unwrap()
}

/// Repeats a question until the answer fits.
pub async fn eventually<T: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> T, fits: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if fits(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not come true; the last answer was {answer:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
