//! Against a server of our own that speaks as CFSSL does.

use super::*;
use hyper::body::Incoming;
use hyper::service::service_fn;
use rustls::server::WebPkiClientVerifier;
use skep_ca::{DEFAULT_LIFETIME, Identity, NodeKey, NodeRole, RootCa, Secret};
use skep_types::{ClusterRootCa, NodeId, Sensitive};
use std::convert::Infallible;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Signs,
    SignsForAnother,
    Refuses,
    TalksNonsense,
    TalksWithoutEnd,
}

/// What was asked, and what an external CA makes of it.
fn answer(root: &RootCa, mood: Mood, body: &[u8]) -> Vec<u8> {
    let asked: serde_json::Value = serde_json::from_slice(body).unwrap();
    let name = &asked["subject"]["names"][0];
    let role = if name["OU"] == "swarm-manager" { NodeRole::Manager } else { NodeRole::Worker };
    let node = asked["subject"]["CN"].as_str().unwrap();
    assert_eq!(asked["hosts"][0], name["OU"]);
    assert_eq!(asked["hosts"][1], node);
    let node: NodeId = if mood == Mood::SignsForAnother { NodeId::for_test(99) } else { node.parse().unwrap() };
    let subject = Subject { node, role, cluster: name["O"].as_str().unwrap().parse().unwrap() };
    match mood {
        Mood::Signs | Mood::SignsForAnother => {
            let request = asked["certificate_request"].as_str().unwrap();
            let issued = root.issue(request.as_bytes(), &subject, DEFAULT_LIFETIME, SystemTime::now()).unwrap();
            serde_json::json!({ "success": true, "result": { "certificate": issued.chain_pem }, "errors": [], "messages": [] })
                .to_string()
                .into_bytes()
        }
        Mood::Refuses => {
            let errors = serde_json::json!([{ "code": 5300, "message": "policy violation" }]);
            serde_json::json!({ "success": false, "result": null, "errors": errors, "messages": [] }).to_string().into_bytes()
        }
        Mood::TalksNonsense => b"<html>".to_vec(),
        Mood::TalksWithoutEnd => vec![b' '; MAX_REPLY + 1],
    }
}

/// Listens with a certificate of `root` and signs with `signer`.
async fn external_ca(root: &RootCa, signer: &RootCa, mood: Mood) -> (String, JoinSet<()>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer_key = rcgen::KeyPair::from_pem(root.key_pem().expose()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(root.bundle().pem(), issuer_key).unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.bundle().certificates()[0].clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config =
        rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/api/v1/cfssl/sign", listener.local_addr().unwrap());
    let signer = signer.clone();
    let mut server = JoinSet::new();
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
                    Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(answer(&signer, mood, &body)))))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
        }
    });
    (url, server)
}

fn root() -> RootCa {
    skep_ca::install_crypto_provider();
    RootCa::generate(SystemTime::now()).unwrap()
}

fn cluster(root: &RootCa, entries: Vec<ExternalCa>) -> Cluster {
    let mut cluster = Cluster::new(ClusterId::for_test(1));
    cluster.root_ca = ClusterRootCa { ca_cert: root.bundle().pem().as_bytes().to_vec(), ..ClusterRootCa::default() };
    cluster.spec.ca_config.external_cas = entries;
    cluster
}

fn entry(url: &str, root: Option<&RootCa>) -> ExternalCa {
    let ca_cert = root.map(|root| root.bundle().pem().as_bytes().to_vec()).unwrap_or_default();
    ExternalCa { url: url.to_owned(), ca_cert, ..ExternalCa::default() }
}

fn security(root: &RootCa) -> SecurityConfig {
    let identity =
        Identity::of_first_manager(root, NodeId::for_test(7), ClusterId::for_test(1), DEFAULT_LIFETIME, SystemTime::now()).unwrap();
    SecurityConfig::new(identity).unwrap()
}

fn node(number: u64, role: NodeRole) -> (NodeKey, Arc<Node>) {
    let key = NodeKey::generate().unwrap();
    let csr = key.request().unwrap().into_bytes();
    let certificate = Certificate { csr, state: IssuanceState::Pending, ..Certificate::default() };
    (key, Arc::new(Node { certificate, role, ..Node::new(NodeId::for_test(number)) }))
}

async fn ask(root: &RootCa, cluster: &Cluster, nodes: Vec<Arc<Node>>) -> (Vec<Arc<Node>>, bool) {
    let external = External::of(cluster).unwrap();
    external.certify(&security(root), &cluster.id, nodes, SystemTime::now()).await
}

#[tokio::test]
async fn it_signs_for_many_nodes_and_the_first_url_that_answers_does() {
    let root = root();
    let (url, _server) = external_ca(&root, &root, Mood::Signs).await;
    let cluster = cluster(&root, vec![entry("https://127.0.0.1:1/", None), entry(&url, None)]);
    let (worker_key, worker) = node(1, NodeRole::Worker);
    let (manager_key, manager) = node(2, NodeRole::Manager);
    let (decided, all) = ask(&root, &cluster, vec![worker, manager]).await;
    assert!(all);
    for node in decided {
        assert_eq!(node.certificate.state, IssuanceState::Issued, "{}", node.certificate.err);
        let key = if node.role == NodeRole::Manager { &manager_key } else { &worker_key };
        let identity = Identity::new(key.clone(), &text(&node.certificate.certificate), root.bundle().clone(), SystemTime::now()).unwrap();
        assert_eq!((identity.node_id(), identity.role()), (&node.id, node.role));
    }
}

#[tokio::test]
async fn a_refusal_and_a_wrong_certificate_are_final_and_nothing_else_is() {
    let root = root();
    for (mood, says) in [(Mood::Refuses, "policy violation"), (Mood::SignsForAnother, "not what it was asked for")] {
        let (url, _server) = external_ca(&root, &root, mood).await;
        let (decided, all) = ask(&root, &cluster(&root, vec![entry(&url, None)]), vec![node(1, NodeRole::Worker).1]).await;
        assert!(all);
        assert_eq!(decided[0].certificate.state, IssuanceState::Failed);
        assert!(decided[0].certificate.err.contains(says), "{}", decided[0].certificate.err);
    }
    for mood in [Mood::TalksNonsense, Mood::TalksWithoutEnd] {
        let (url, _server) = external_ca(&root, &root, mood).await;
        let (decided, all) = ask(&root, &cluster(&root, vec![entry(&url, None)]), vec![node(1, NodeRole::Worker).1]).await;
        assert!(decided.is_empty() && !all, "{mood:?}");
    }
}

#[tokio::test]
async fn during_a_rotation_the_new_roots_ca_is_asked_and_its_chain_leads_to_the_old_one() {
    let (old, new) = (root(), root());
    let (url, _server) = external_ca(&old, &new, Mood::Signs).await;
    let mut cluster = cluster(&old, vec![entry("https://127.0.0.1:1/", None), entry(&url, Some(&new))]);
    cluster.root_ca.root_rotation = Some(skep_types::RootRotation {
        ca_cert: new.bundle().pem().as_bytes().to_vec(),
        ca_key: Sensitive(Vec::new()),
        cross_signed_ca_cert: old.cross_sign(new.bundle()).unwrap().into_bytes(),
    });
    assert_eq!(External::of(&cluster).unwrap().targets.len(), 1, "the entry without certificate is of the present root");
    let (decided, _) = ask(&old, &cluster, vec![node(1, NodeRole::Worker).1]).await;
    assert_eq!(decided[0].certificate.state, IssuanceState::Issued, "{}", decided[0].certificate.err);
    let chain = text(&decided[0].certificate.certificate);
    for roots in [old.bundle(), new.bundle()] {
        roots.verify_pem(&chain, SystemTime::now()).unwrap();
    }
}

#[tokio::test]
async fn whether_it_answers_is_found_out_beforehand() {
    let (root, stranger) = (root(), root());
    let (url, _server) = external_ca(&root, &root, Mood::Signs).await;
    let (foreign, _foreign_server) = external_ca(&stranger, &stranger, Mood::Signs).await;
    let security = security(&root);
    let check = async |urls: &[&str]| {
        let entries: Vec<_> = urls.iter().map(|url| entry(url, None)).collect();
        check_reachable(&security, &entries, None).await
    };
    check(&["https://127.0.0.1:1/", &url]).await.unwrap();
    assert!(matches!(check(&["https://127.0.0.1:1/"]).await, Err(ExternalError::Unreachable { .. })));
    assert!(matches!(check(&[&foreign]).await, Err(ExternalError::Unreachable { .. })), "it has no certificate of our root");
}

#[test]
fn only_entries_that_can_be_used_are_taken() {
    let refused = |entry: ExternalCa| check_entries(&[entry]).unwrap_err().field;
    assert_eq!(refused(entry("http://ca.example/", None)), "ca_config.external_cas[0].url");
    assert_eq!(refused(entry("ca.example", None)), "ca_config.external_cas[0].url");
    assert_eq!(
        refused(ExternalCa { ca_cert: b"junk".to_vec(), ..entry("https://ca.example/", None) }),
        "ca_config.external_cas[0].ca_cert"
    );
    let odd = ExternalCa { options: [("wish".to_owned(), String::new())].into(), ..entry("https://ca.example/", None) };
    assert_eq!(refused(odd), "ca_config.external_cas[0].options");
    assert_eq!(check_entries(&[entry("https://[2001:db8::1]:8443/sign", None)]), Ok(()));
    let target = Target::parse("https://[2001:db8::1]/sign?x=1").unwrap();
    assert_eq!((target.bare_host(), target.port, target.path.as_str()), ("2001:db8::1", 443, "/sign?x=1"));
}

#[test]
fn secrets_are_not_in_what_is_sent() {
    let root = root();
    let key = Secret::new(root.key_pem().expose().to_owned());
    let csr = NodeKey::generate().unwrap().request().unwrap();
    let subject = Subject { node: NodeId::for_test(1), role: NodeRole::Manager, cluster: ClusterId::for_test(2) };
    let body = String::from_utf8(node_request(&csr, &subject, "").to_vec()).unwrap();
    assert!(body.contains("BEGIN CERTIFICATE REQUEST") && !body.contains(key.expose()) && !body.contains("PRIVATE"));
    assert!(body.contains("\"swarm-ca\"") && !body.contains("profile"), "{body}");
}
