//! How many connections to the cluster's port were refused, and for what.

use crate::accept::AcceptError;
use rustls::{CertificateError, Error};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Connections to the cluster's port that were refused since the node started, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// Asked for a manager by name and showed no certificate.
    pub no_certificate: u64,
    /// Showed a certificate that the cluster's roots do not vouch for, or one that names nobody.
    pub foreign: u64,
    /// Showed a certificate of the cluster after its time, or before it.
    pub expired: u64,
    /// Did not finish the handshake in time, or not before others needed the place.
    pub unfinished: u64,
    /// Came from an address that had too many unfinished handshakes already, or from an address or a node whose connections came
    /// to nothing too often.
    pub crowded: u64,
    /// Spoke no TLS, or none that is allowed.
    pub malformed: u64,
}

/// Why one connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    NoCertificate,
    Foreign,
    Expired,
    Unfinished,
    Crowded,
    Malformed,
}

impl Reason {
    /// `None`: this node refused nobody; the other end went away, or had an objection of its own.
    pub(crate) fn of(error: &AcceptError) -> Option<Self> {
        match error {
            AcceptError::TimedOut => Some(Self::Unfinished),
            AcceptError::Unruly(_) => Some(Self::Crowded),
            AcceptError::Expired => Some(Self::Expired),
            AcceptError::Subject(_) => Some(Self::Foreign),
            AcceptError::Security(_) => None,
            AcceptError::Handshake(error) => Self::of_handshake(error),
        }
    }

    fn of_handshake(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::NoCertificatesPresented => Some(Self::NoCertificate),
            Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => Some(Self::Expired),
            Error::InvalidCertificate(_) => Some(Self::Foreign),
            Error::AlertReceived(_) => None,
            _ => Some(Self::Malformed),
        }
    }
}

/// Where the connections are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; 6]);

impl Counters {
    pub(crate) fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Refused {
        let of = |reason: Reason| self.0[reason as usize].load(Ordering::Relaxed);
        Refused {
            no_certificate: of(Reason::NoCertificate),
            foreign: of(Reason::Foreign),
            expired: of(Reason::Expired),
            unfinished: of(Reason::Unfinished),
            crowded: of(Reason::Crowded),
            malformed: of(Reason::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;
    use skep_types::{ClusterId, NodeId};
    use std::time::{Duration, SystemTime};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    fn node(root: &RootCa, number: u64, made: SystemTime) -> Identity {
        let key = NodeKey::generate().unwrap();
        let subject = Subject { node: NodeId::for_test(number), role: NodeRole::Worker, cluster: ClusterId::for_test(9) };
        let issued = root.issue(key.request().unwrap().as_bytes(), &subject, MIN_LIFETIME, made).unwrap();
        Identity::new(key, &issued.chain_pem, root.bundle().clone(), made).unwrap()
    }

    /// A client that trusts `roots`, shows this certificate and asks for a manager.
    async fn ask(address: std::net::SocketAddr, roots: &RootBundle, shown: Option<&Identity>) {
        let config = rustls::ClientConfig::builder_with_provider(crate::provider::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.store());
        let config = match shown {
            None => config.with_no_client_auth(),
            Some(identity) => config.with_client_auth_cert(identity.chain().to_vec(), identity.key().for_rustls()).unwrap(),
        };
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let name = rustls::pki_types::ServerName::try_from(MANAGER_NAME).unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        let mut stream = connector.connect(name, tcp).await.unwrap();
        stream.read_u8().await.unwrap_err();
    }

    /// The other end may see its connection closed a moment before it is counted.
    async fn becomes(security: &SecurityConfig, wanted: Refused) {
        let wait = async {
            while security.refused() != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(seen.is_ok(), "{:?}, not {wanted:?}", security.refused());
    }

    #[tokio::test]
    async fn each_refusal_is_counted_once_and_by_its_reason() {
        let (now, root, other) =
            (SystemTime::now(), RootCa::generate(SystemTime::now()).unwrap(), RootCa::generate(SystemTime::now()).unwrap());
        let security = SecurityConfig::new(
            Identity::of_first_manager(&root, NodeId::for_test(1), ClusterId::for_test(9), DEFAULT_LIFETIME, now).unwrap(),
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = serve_remote(listener, &security);
        let mut wanted = Refused::default();

        ask(address, root.bundle(), None).await;
        wanted.no_certificate += 1;
        becomes(&security, wanted).await;
        ask(address, root.bundle(), Some(&node(&other, 2, now))).await;
        wanted.foreign += 1;
        becomes(&security, wanted).await;
        for made in [now - Duration::from_secs(3 * 3600), now + Duration::from_secs(24 * 3600)] {
            ask(address, root.bundle(), Some(&node(&root, 2, made))).await;
            wanted.expired += 1;
            becomes(&security, wanted).await;
        }
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let _ = plain.read_to_end(&mut Vec::new()).await;
        wanted.malformed += 1;
        becomes(&security, wanted).await;

        // Who only looks whether the port is open, who does not trust this manager, and who joins are not refused.
        drop(TcpStream::connect(address).await.unwrap());
        let distrustful = Connector::bootstrap(other.bundle()).unwrap();
        distrustful.connect(TcpStream::connect(address).await.unwrap()).await.unwrap_err();
        let joining = Connector::bootstrap(root.bundle()).unwrap();
        let stream = joining.connect(TcpStream::connect(address).await.unwrap()).await.unwrap();
        assert!(incoming.next().await.unwrap().peer().is_none());
        drop(stream);
        assert_eq!(security.refused(), wanted);
    }
}
