//! What makes an agent a member of a cluster: key, certificate, and the TLS configuration made of them.
//!
//! Smaller than `skep_ca::SecurityConfig`, which also serves and renews: ten thousand of these fit into one process.

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use skep_ca::{BadIdentity, BadKey, BadRoots, Identity, MANAGER_NAME, NodeKey, RootBundle, Secret};
use skep_proto::v1;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Sessions a member may resume: with the one name that all managers have. The smallest the cache can be.
const RESUMABLE: usize = 1;
/// HTTP/2.
const H2: &[u8] = b"h2";

/// Why a member cannot be made, kept or read back.
#[derive(Debug, thiserror::Error)]
pub enum BadMember {
    #[error("the certificate is not PEM text with certificates")]
    Chain,
    #[error("the key cannot be used")]
    Key(#[from] BadKey),
    #[error("the roots cannot be used")]
    Roots(#[from] BadRoots),
    #[error("key, certificate and roots do not make an identity")]
    Identity(#[from] BadIdentity),
    #[error("the TLS library refuses the configuration")]
    Tls(#[from] rustls::Error),
    #[error("the file of members {path} cannot be used; remove it to join anew")]
    File { path: String, source: std::io::Error },
}

/// What all members of a cluster share: the roots, ready to verify managers with.
#[derive(Debug)]
pub struct Trust {
    bundle: RootBundle,
    verifier: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
    info: OnceLock<v1::NodeTlsInfo>,
}

impl Trust {
    /// # Errors
    /// If the roots cannot be used.
    pub fn new(bundle: &RootBundle) -> Result<Arc<Self>, BadMember> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut store = RootCertStore::empty();
        for certificate in bundle.certificates() {
            store.add(certificate.clone())?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Arc::new(Self { bundle: bundle.clone(), verifier, provider, info: OnceLock::new() }))
    }

    #[must_use]
    pub fn bundle(&self) -> &RootBundle {
        &self.bundle
    }

    /// What nodes report of their certificates; the same for all, who have one issuer.
    pub(crate) fn tls_info(&self, any: &Member) -> Option<v1::NodeTlsInfo> {
        if self.info.get().is_none() {
            let identity = Identity::new(any.key.clone(), &any.chain_pem, self.bundle.clone(), SystemTime::now()).ok()?;
            let info = identity.tls_info();
            let _ = self.info.set(v1::NodeTlsInfo {
                trust_root: info.trust_root,
                cert_issuer_subject: info.cert_issuer_subject,
                cert_issuer_public_key: info.cert_issuer_public_key,
            });
        }
        self.info.get().cloned()
    }
}

/// One node. Clones share everything.
#[derive(Clone)]
pub struct Member {
    pub node_id: Arc<str>,
    pub trust: Arc<Trust>,
    key: NodeKey,
    chain_pem: Arc<str>,
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Member({})", self.node_id)
    }
}

impl Member {
    /// # Errors
    /// If key and certificate are not usable together.
    pub fn new(trust: &Arc<Trust>, node_id: &str, key: NodeKey, chain_pem: &str) -> Result<Self, BadMember> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| BadMember::Chain)?;
        let der = PrivateKeyDer::from_pem_slice(key.pem().expose().as_bytes()).map_err(|_| BadKey::NotPem)?;
        let mut config = ClientConfig::builder_with_provider(trust.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_webpki_verifier(trust.verifier.clone())
            .with_client_auth_cert(chain, der)?;
        config.alpn_protocols = vec![H2.to_vec()];
        config.resumption = Resumption::in_memory_sessions(RESUMABLE);
        Ok(Self { node_id: node_id.into(), trust: trust.clone(), key, chain_pem: chain_pem.into(), config: Arc::new(config) })
    }

    /// Shakes hands with a manager as this node.
    ///
    /// # Errors
    /// rustls's.
    pub async fn secure<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO) -> std::io::Result<TlsStream<IO>> {
        let name = ServerName::try_from(MANAGER_NAME).expect("our server names are DNS names");
        TlsConnector::from(self.config.clone()).connect(name, io).await
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Line {
    node: String,
    key: String,
    chain: String,
}

/// Writes members to a file that only the owner may read: the roots first, then a line each.
///
/// # Errors
/// If the file cannot be written.
pub fn save_members(path: &Path, bundle: &RootBundle, members: &[Member]) -> Result<(), BadMember> {
    let failed = |source: std::io::Error| BadMember::File { path: path.display().to_string(), source };
    let file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).map_err(failed)?;
    let mut out = std::io::BufWriter::new(file);
    let mut line = |text: Result<String, serde_json::Error>| writeln!(out, "{}", text.map_err(std::io::Error::other)?);
    line(serde_json::to_string(bundle.pem())).map_err(failed)?;
    for member in members {
        let kept =
            Line { node: member.node_id.to_string(), key: member.key.pem().expose().to_owned(), chain: member.chain_pem.to_string() };
        line(serde_json::to_string(&kept)).map_err(failed)?;
    }
    out.flush().map_err(failed)
}

/// Reads what [`save_members`] wrote.
///
/// # Errors
/// If the file cannot be read or is not one of these.
pub fn load_members(path: &Path) -> Result<Vec<Member>, BadMember> {
    let failed = |source: std::io::Error| BadMember::File { path: path.display().to_string(), source };
    let mut lines = BufReader::new(std::fs::File::open(path).map_err(failed)?).lines();
    let first = lines.next().ok_or_else(|| failed(std::io::ErrorKind::UnexpectedEof.into()))?.map_err(failed)?;
    let pem: String = serde_json::from_str(&first).map_err(|error| failed(error.into()))?;
    let trust = Trust::new(&RootBundle::parse(&pem)?)?;
    let mut members = Vec::new();
    for line in lines {
        let line: Line = serde_json::from_str(&line.map_err(failed)?).map_err(|error| failed(error.into()))?;
        let key = NodeKey::parse(Secret::new(line.key).expose())?;
        members.push(Member::new(&trust, &line.node, key, &line.chain)?);
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ca::{DEFAULT_LIFETIME, NodeRole, RootCa, Subject};
    use skep_types::{ClusterId, NodeId};

    #[test]
    fn members_are_read_back_as_they_were_written() {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let trust = Trust::new(root.bundle()).unwrap();
        let member = |number| {
            let key = NodeKey::generate().unwrap();
            let subject = Subject { node: NodeId::for_test(number), role: NodeRole::Worker, cluster: ClusterId::for_test(9) };
            let issued = root.issue(key.request().unwrap().as_bytes(), &subject, DEFAULT_LIFETIME, SystemTime::now()).unwrap();
            Member::new(&trust, subject.node.as_str(), key, &issued.chain_pem).unwrap()
        };
        let members = [member(1), member(2)];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("members");
        save_members(&path, root.bundle(), &members).unwrap();
        let again = load_members(&path).unwrap();
        let ids = |list: &[Member]| list.iter().map(|member| (member.node_id.clone(), member.chain_pem.clone())).collect::<Vec<_>>();
        assert_eq!(ids(&again), ids(&members));
        assert!(again[0].trust.tls_info(&again[0]).is_some_and(|info| info.trust_root == root.bundle().pem().as_bytes()));
        assert!(load_members(&dir.path().join("none")).unwrap_err().to_string().contains("remove it to join anew"));
    }
}
