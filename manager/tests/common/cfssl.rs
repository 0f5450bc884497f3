//! A server that speaks as CFSSL does, with what it signs decided by the test.
#![allow(dead_code, reason = "each test file uses a part of it")]

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::server::WebPkiClientVerifier;
use skep_ca::{DEFAULT_LIFETIME, NodeRole, RootCa, Subject};
use skep_types::NodeId;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Longer than any reply that is read.
const ENDLESS: usize = 257 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// For nodes; where the profile `CA` is missing, CFSSL 1.2 takes its default one, which makes no CA of anybody.
    Signs,
    /// For roots too.
    SignsRoots,
    /// The name of a root comes out in other bytes.
    RenamesRoots,
    SignsForAnother,
    Refuses,
    TalksNonsense,
    TalksWithoutEnd,
    SaysNothing,
}

pub struct Cfssl {
    pub url: String,
    _server: JoinSet<()>,
}

impl Cfssl {
    /// Listens with a certificate of `root` and signs with `signer`. Clients are known by `trusted`, all of them roots.
    pub async fn start(root: &RootCa, signer: &RootCa, trusted: &[&RootCa], mood: Mood) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer(root)).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        for root in trusted {
            roots.add(root.bundle().certificates()[0].clone()).unwrap();
        }
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = rustls::ServerConfig::builder().with_client_cert_verifier(verifier);
        let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/api/v1/cfssl/sign", listener.local_addr().unwrap());
        let (signer, mut server) = (signer.clone(), JoinSet::new());
        server.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let signer = signer.clone();
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let signer = signer.clone();
                    async move {
                        assert_eq!((request.method(), request.uri().path()), (&http::Method::POST, "/api/v1/cfssl/sign"));
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        if mood == Mood::SaysNothing {
                            std::future::pending::<()>().await;
                        }
                        Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(answer(&signer, mood, &body)))))
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
            }
        });
        Self { url, _server: server }
    }
}

fn issuer(root: &RootCa) -> Issuer<'static, KeyPair> {
    Issuer::from_ca_cert_pem(root.bundle().pem(), KeyPair::from_pem(root.key_pem().expose()).unwrap()).unwrap()
}

fn signed(certificate: &str) -> Vec<u8> {
    serde_json::json!({ "success": true, "result": { "certificate": certificate }, "errors": [], "messages": [] }).to_string().into_bytes()
}

fn refused(code: u16, why: &str) -> Vec<u8> {
    let errors = serde_json::json!([{ "code": code, "message": why }]);
    serde_json::json!({ "success": false, "result": null, "errors": errors, "messages": [] }).to_string().into_bytes()
}

/// What was asked, and what an external CA makes of it.
fn answer(signer: &RootCa, mood: Mood, body: &[u8]) -> Vec<u8> {
    match mood {
        Mood::Refuses => return refused(5300, "policy violation"),
        Mood::TalksNonsense => return b"<html>".to_vec(),
        Mood::TalksWithoutEnd => return vec![b' '; ENDLESS],
        _ => {}
    }
    let asked: serde_json::Value = serde_json::from_slice(body).unwrap();
    let request = asked["certificate_request"].as_str().unwrap();
    if asked["profile"] == "CA" {
        return match mood {
            Mood::Signs | Mood::SignsRoots | Mood::RenamesRoots => signed(&root(signer, mood, &asked, request)),
            _ => refused(1300, "extension 2.5.29.19 is not allowed"),
        };
    }
    let name = &asked["subject"]["names"][0];
    let role = if name["OU"] == "swarm-manager" { NodeRole::Manager } else { NodeRole::Worker };
    let node = asked["subject"]["CN"].as_str().unwrap();
    assert_eq!(asked["hosts"][0], name["OU"]);
    assert_eq!(asked["hosts"][1], node);
    let node: NodeId = if mood == Mood::SignsForAnother { NodeId::for_test(99) } else { node.parse().unwrap() };
    let subject = Subject { node, role, cluster: name["O"].as_str().unwrap().parse().unwrap() };
    signed(&signer.issue(request.as_bytes(), &subject, DEFAULT_LIFETIME, SystemTime::now()).unwrap().chain_pem)
}

/// Of the request it takes the key; the name is written anew, and that it is a CA comes from the extension beside it.
fn root(signer: &RootCa, mood: Mood, asked: &serde_json::Value, request: &str) -> String {
    skep_ca::check_request(request.as_bytes()).unwrap();
    let key = skep_ca::key_of_request(request.as_bytes()).unwrap();
    let extension = &asked["extensions"][0];
    assert_eq!((&extension["id"], &extension["critical"], &extension["value"]), (&"2.5.29.19".into(), &true.into(), &"30030101ff".into()));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = asked["subject"]["CN"].as_str().unwrap();
    let name = if mood == Mood::RenamesRoots { name.into() } else { DnValue::PrintableString(name.try_into().unwrap()) };
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = if mood == Mood::Signs { IsCa::ExplicitNoCa } else { IsCa::Ca(BasicConstraints::Unconstrained) };
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    let key = rcgen::SubjectPublicKeyInfo::from_der(&key).unwrap();
    params.signed_by(&key, &issuer(signer)).unwrap().pem()
}
