//! Debian's etcd 3.4, three members with TLS beside each other on loopback.

use crate::managers::until;
use anyhow::{Result, ensure};
use http::uri::PathAndQuery;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use skep_agents::{Http2, connect, origin};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

const NAME: &str = "localhost";
const LIMIT: Duration = Duration::from_secs(60);

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.ResponseHeader`.
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// Three members. Killed and removed when dropped.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Child>,
    config: Arc<ClientConfig>,
    dir: tempfile::TempDir,
}

/// One connection to a member.
#[derive(Debug, Clone)]
pub struct EtcdClient(Grpc<Http2>);

impl EtcdClient {
    async fn call<Q, A>(&mut self, path: &'static str, request: Q) -> Result<A>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        self.0.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        Ok(self.0.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await?.into_inner())
    }

    /// Writes one value.
    ///
    /// # Errors
    /// etcd's.
    pub async fn put(&mut self, key: String, value: Vec<u8>) -> Result<()> {
        let answer: PutResponse = self.call("/etcdserverpb.KV/Put", PutRequest { key: key.into_bytes(), value }).await?;
        ensure!(answer.header.is_some(), "etcd says nothing about the write");
        Ok(())
    }

    async fn leads(&mut self) -> Result<bool> {
        let answer: StatusResponse = self.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        let member = answer.header.unwrap_or_default().member_id;
        Ok(answer.leader != 0 && answer.leader == member)
    }
}

fn certificates(dir: &Path) -> Result<Arc<ClientConfig>> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec![NAME.to_owned(), address(0), address(1), address(2)])?;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = leaf.signed_by(&key, &issuer)?;
    std::fs::write(dir.join("ca.pem"), ca_certificate.pem())?;
    std::fs::write(dir.join("cert.pem"), certificate.pem())?;
    std::fs::write(dir.join("key.pem"), key.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(ca_certificate.der().clone())?;
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).map_err(|_| anyhow::anyhow!("the new key is not PEM"))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn address(number: usize) -> String {
    format!("127.0.0.{}", 11 + number)
}

/// The program, unpacked beforehand by `scripts/etcd-peer`.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("PEER_ETCD")?).join("usr/bin/etcd");
    path.is_file().then_some(path)
}

impl Etcd {
    /// # Errors
    /// If the members do not elect a leader, with the end of a log.
    pub async fn start(program: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("ske{}-", std::process::id())).tempdir_in("/var/tmp")?;
        let mut this = Self { members: Vec::new(), config: certificates(dir.path())?, dir };
        let path = |name: &str| this.dir.path().join(name).display().to_string();
        let cluster: Vec<String> = (0..3).map(|number| format!("m{number}=https://{}:2380", address(number))).collect();
        let mut members = Vec::new();
        for number in 0..3 {
            let (client, peer) = (format!("https://{}:2379", address(number)), format!("https://{}:2380", address(number)));
            let log = File::create(this.dir.path().join(format!("log{number}")))?;
            let mut command = Command::new(program);
            command
                .args(["--name", &format!("m{number}"), "--data-dir", &path(&format!("d{number}"))])
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &cluster.join(","), "--logger", "zap", "--log-level", "error"]);
            for prefix in ["--", "--peer-"] {
                command.args([format!("{prefix}cert-file"), path("cert.pem"), format!("{prefix}key-file"), path("key.pem")]);
                command.args([format!("{prefix}trusted-ca-file"), path("ca.pem"), format!("{prefix}client-cert-auth")]);
            }
            members.push(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
        }
        this.members = members;
        let elected = until("etcd elects a leader", LIMIT, Duration::from_millis(100), || async { Ok(this.leader().await.is_ok()) }).await;
        elected.map_err(|error| {
            let log = std::fs::read_to_string(this.dir.path().join("log0")).unwrap_or_default();
            error.context(log[log.len().saturating_sub(2000)..].to_owned())
        })?;
        Ok(this)
    }

    /// A new connection to a member.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn connect(&self, member: usize) -> Result<EtcdClient> {
        let tls = TlsConnector::from(self.config.clone());
        let name = ServerName::try_from(NAME)?;
        let http2 = connect(&format!("{}:2379", address(member)), |tcp| async move { tls.connect(name, tcp).await }).await?;
        Ok(EtcdClient(Grpc::with_origin(http2, origin())))
    }

    /// The member that leads.
    ///
    /// # Errors
    /// If none does.
    pub async fn leader(&self) -> Result<usize> {
        for member in 0..self.members.len() {
            if let Ok(mut client) = self.connect(member).await
                && client.leads().await.unwrap_or(false)
            {
                return Ok(member);
            }
        }
        anyhow::bail!("no member of etcd leads")
    }

    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Child::id).collect()
    }

    /// What it says of its version.
    #[must_use]
    pub fn version(program: &Path) -> String {
        let output = skep_kit::run(&program.to_string_lossy(), &["--version"]).map(|output| output.stdout).unwrap_or_default();
        output.lines().next().unwrap_or("etcd").to_owned()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}
