//! The rustls configurations, each built once and shared.

use crate::identity::Identity;
use crate::key::NodeKey;
use crate::provider::provider;
use crate::roots::RootBundle;
use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientCertVerifierBuilder, NoServerSessionStorage, ProducesTickets, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::sync::Arc;

/// HTTP/2. Servers offer it and also take connections without any ALPN: a genuine agent that renewed its certificate sends
/// none (spec wire-behaviour 2.1).
const H2: &[u8] = b"h2";

/// What the local socket is called in TLS; nobody verifies it.
pub(crate) const LOCAL_NAME: &str = "localhost";

/// For the TCP port, for clients that ask for a manager by its name: nodes of the cluster. A client certificate that verifies under
/// the cluster's roots is required. 0-RTT is off (rustls's default). `tickets` seals resumption tickets; pass new ones whenever the
/// roots change, so that no session accepted under the old roots is resumed.
pub(crate) fn member_server(identity: &Identity, tickets: Arc<dyn ProducesTickets>) -> Result<ServerConfig, rustls::Error> {
    let verifier = client_verifier(identity).build();
    let mut config = remote_server(identity, verifier)?;
    config.ticketer = tickets;
    Ok(config)
}

/// For the TCP port, for everybody else: nodes that join. A client certificate is asked for but not required, and one that is given
/// must verify. No tickets: with them a session without certificate would be resumed as one.
pub(crate) fn joining_server(identity: &Identity) -> Result<ServerConfig, rustls::Error> {
    let verifier = client_verifier(identity).allow_unauthenticated().build();
    let mut config = remote_server(identity, verifier)?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_verifier(identity: &Identity) -> ClientCertVerifierBuilder {
    WebPkiClientVerifier::builder_with_provider(identity.roots().store(), provider())
}

fn remote_server(
    identity: &Identity,
    verifier: Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key().for_rustls())?;
    config.alpn_protocols = vec![H2.to_vec()];
    // Sessions live in the clients' tickets: 10,000 agents cost the server no memory for them.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// For the local socket: no client certificate; TLS 1.3 only; no resumption (a command line connects once).
/// The provider is the one of [`crate::sni`].
pub(crate) fn local_server(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crate::sni::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For the Docker API on TCP: a client certificate that verifies under the cluster's roots is required; who it is for is looked at
/// afterwards. TLS 1.3 and HTTP/1.1 only; no resumption, so that no session outlives the roots it was begun under.
pub(crate) fn docker_server(
    roots: &RootBundle,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.store(), provider()).build();
    let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A certificate that proves nothing, for the local socket of a node that has no identity yet.
pub(crate) fn ephemeral() -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), rustls::Error> {
    let general = |error: String| rustls::Error::General(error);
    let key = NodeKey::generate().map_err(|error| general(error.to_string()))?;
    let mut params = CertificateParams::new(vec![LOCAL_NAME.to_owned()]).map_err(|error| general(error.to_string()))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "skep, no identity yet");
    let certificate = params.self_signed(key.pair()).map_err(|error| general(error.to_string()))?;
    Ok((vec![certificate.der().clone()], key.for_rustls()))
}

/// Steady state: own certificate, server verified against the cluster's roots.
pub(crate) fn node_client(identity: &Identity) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(identity.roots().store())
        .with_client_auth_cert(identity.chain().to_vec(), identity.key().for_rustls())?;
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(config)
}

/// For servers that are no nodes but are vouched for by the cluster's root, or by the one that is being introduced: own certificate,
/// HTTP/1.1.
pub(crate) fn outside_client(identity: &Identity, coming: Option<&RootBundle>) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::clone(&identity.roots().store());
    roots.extend(coming.into_iter().flat_map(|bundle| bundle.store().roots.clone()));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key().for_rustls())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Bootstrap: roots downloaded and pinned by the token, no own certificate yet.
pub(crate) fn bootstrap_client(roots: &RootBundle) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.store())
        .with_no_client_auth();
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(config)
}

/// No verification of the server, not even of its name. [`crate::Connector`] fetches the roots with it (the token's digest is
/// checked afterwards) and goes to the local socket (its directory is root's).
pub fn unverified_client() -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct AnyServer;

/// The certificate is not looked at; that the server holds its key still is.
impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
