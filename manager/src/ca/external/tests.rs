//! Against a server of our own that speaks as CFSSL does.

#[path = "../../../tests/common/cfssl.rs"]
mod cfssl;

use super::*;
use crate::ca::{WantedRoot, wanted_root};
use cfssl::{Cfssl, Mood};
use skep_ca::{CaError, DEFAULT_LIFETIME, Identity, NodeKey, NodeRole, RootCa, Secret};
use skep_types::{ClusterRootCa, NodeId, Sensitive};

/// With a certificate of `root`, whose clients it knows, and the key of `signer`.
async fn external_ca(root: &RootCa, signer: &RootCa, mood: Mood) -> (String, Cfssl) {
    let server = Cfssl::start(root, signer, &[root], mood).await;
    (server.url.clone(), server)
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
async fn whether_it_signs_is_found_out_beforehand() {
    let (root, stranger) = (root(), root());
    let (url, _server) = external_ca(&root, &root, Mood::Signs).await;
    let (foreign, _foreign_server) = external_ca(&stranger, &stranger, Mood::Signs).await;
    let (wrong, _wrong_server) = external_ca(&root, &stranger, Mood::Signs).await;
    let (refuses, _refusing_server) = external_ca(&root, &root, Mood::Refuses).await;
    let security = security(&root);
    let check = async |urls: &[&str]| {
        let entries = urls.iter().map(|url| entry(url, None)).collect();
        check_signs(&security, &cluster(&root, entries), SystemTime::now()).await
    };
    check(&["https://127.0.0.1:1/", &refuses, &url]).await.unwrap();
    assert!(matches!(check(&["https://127.0.0.1:1/"]).await, Err(ExternalError::Unreachable { .. })));
    assert!(matches!(check(&[&foreign]).await, Err(ExternalError::Unreachable { .. })), "it has no certificate of our root");
    assert!(matches!(check(&[&refuses]).await, Err(ExternalError::Refused { .. })));
    assert!(matches!(check(&[&wrong]).await, Err(ExternalError::Wrong { .. })), "it signs with another root's key");
}

/// A new root for a cluster whose root's key is with these external CAs.
async fn introduce(old: &RootCa, entries: Vec<ExternalCa>) -> Result<ClusterRootCa, ExternalError> {
    let mut cluster = cluster(old, entries);
    cluster.spec.ca_config.force_rotate = 1;
    let now = SystemTime::now();
    let WantedRoot::Unsigned(new) = wanted_root(&cluster, &cluster.spec.ca_config, now).unwrap() else { panic!("it is signed outside") };
    cross_sign(&security(old), &cluster.root_ca, &cluster.spec.ca_config.external_cas, &new, now).await
}

#[tokio::test]
async fn the_ca_that_has_the_old_key_introduces_a_new_root() {
    let old = root();
    let (nodes_only, _first) = external_ca(&old, &old, Mood::Signs).await;
    let (url, _second) = external_ca(&old, &old, Mood::SignsRoots).await;
    let entries = vec![entry("https://127.0.0.1:1/", Some(&root())), entry(&nodes_only, None), entry(&url, Some(&old))];
    let mut cluster = cluster(&old, entries.clone());
    cluster.root_ca = introduce(&old, entries).await.unwrap();
    assert_eq!((cluster.root_ca.ca_key.0.is_empty(), cluster.root_ca.last_forced_rotation), (true, 1));
    pin_entries(&mut cluster.spec.ca_config.external_cas, &cluster.root_ca.ca_cert);
    assert!(External::of(&cluster).is_none(), "the cluster signs itself, under the new root");
    let rotation = cluster.root_ca.root_rotation.take().unwrap();
    let (cert, cross) = (text(&rotation.ca_cert), text(&rotation.cross_signed_ca_cert));
    RootCa::during_rotation(old.bundle(), &cert, &Secret::new(text(&rotation.ca_key.0)), &cross).unwrap();
    // The new one is the present one; entries of the old root stay so.
    cluster.root_ca.ca_cert = rotation.ca_cert;
    assert!(External::of(&cluster).is_none());
}

#[tokio::test]
async fn a_new_root_that_is_not_introduced_says_where_and_what_to_do() {
    let old = root();
    for (mood, says) in [
        (Mood::Signs, "signing profile CA must be there"),
        (Mood::Refuses, "policy violation (code 5300); it needs a signing profile named CA"),
        (Mood::RenamesRoots, "otherwise than the new root"),
        (Mood::TalksNonsense, "not as a CFSSL server"),
    ] {
        let (url, _server) = external_ca(&old, &old, mood).await;
        let error = crate::drive::chain(&introduce(&old, vec![entry(&url, None)]).await.unwrap_err());
        assert!(error.contains(says) && error.contains(&url), "{mood:?}: {error}");
    }
    let (url, _server) = external_ca(&old, &root(), Mood::SignsRoots).await;
    let error = introduce(&old, vec![entry(&url, None)]).await.unwrap_err();
    assert!(matches!(&error, ExternalError::WrongRoot { source: UnusableRoot::Ca(CaError::CrossCertificate), .. }), "{error:?}");
}

#[tokio::test]
async fn one_that_does_not_answer_is_not_waited_for() {
    let old = root();
    let (silent, _first) = external_ca(&old, &old, Mood::SaysNothing).await;
    let (url, _second) = external_ca(&old, &old, Mood::SignsRoots).await;
    introduce(&old, vec![entry(&silent, None), entry(&url, None)]).await.unwrap();
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
