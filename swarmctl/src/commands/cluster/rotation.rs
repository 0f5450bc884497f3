//! Watching a root rotation: which nodes have a certificate from the new root, and which trust it.

use super::edit;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output::plain;
use indicatif::{ProgressBar, ProgressStyle};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use skep_proto::{FromWire, v1};
use skep_types::{Cluster, Node, NodeState, TlsInfo};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How often cluster and nodes are looked at; managers ask 30 nodes every 3 s to renew.
const POLL: Duration = Duration::from_millis(500);

/// When the last node has its certificate, all are told the new root at once; one that takes longer than this is not waited for.
const SETTLE: Duration = Duration::from_secs(30);

/// More names than this are not shown.
const MOST_NAMES: usize = 5;

/// How far a rotation is.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    rotating: bool,
    total: usize,
    /// Nodes whose certificate comes from the wanted root.
    renewed: usize,
    /// Nodes that trust the wanted root.
    trusting: usize,
    /// Who is waited for.
    missing: Vec<String>,
    /// Nobody else will come without help.
    all_down: bool,
}

impl Snapshot {
    fn line(&self) -> String {
        let Self { total, renewed, trusting, missing, .. } = self;
        let names = missing.iter().take(MOST_NAMES).map(|name| plain(name)).collect::<Vec<_>>().join(", ");
        let help = if self.all_down { "; `swarmctl node rm` gives up what is gone" } else { "" };
        let names = match missing.len() {
            0 => String::new(),
            more if more > MOST_NAMES => format!(" (waiting for {names} and {} more{help})", more - MOST_NAMES),
            _ => format!(" (waiting for {names}{help})"),
        };
        format!("root rotation: {renewed} of {total} nodes have their new certificate, {trusting} trust the new root{names}")
    }
}

/// Subject and public key of a root as nodes report them of their issuer, both in DER.
fn issuer(pem: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some((certificate.subject().as_raw().to_vec(), certificate.public_key().raw.to_vec()))
}

fn look(cluster: &Cluster, nodes: &[Node]) -> Snapshot {
    let rotation = cluster.root_ca.root_rotation.as_ref();
    let wanted = rotation.map_or(&cluster.root_ca.ca_cert, |rotation| &rotation.ca_cert);
    let issuer = issuer(wanted);
    let tls = |node: &Node| node.description.as_ref().and_then(|known| known.tls_info.clone()).unwrap_or_default();
    let is_renewed = |tls: &TlsInfo| {
        issuer.as_ref().is_some_and(|(subject, key)| tls.cert_issuer_subject == *subject && tls.cert_issuer_public_key == *key)
    };
    let is_trusting = |tls: &TlsInfo| tls.trust_root.trim_ascii() == wanted.trim_ascii();
    let is_missing = |node: &&Node| match rotation {
        // Also nodes that are down: a rotation does not end without them.
        Some(_) => !is_renewed(&tls(node)),
        None => node.status.state == NodeState::Ready && !is_trusting(&tls(node)),
    };
    let missing: Vec<&Node> = nodes.iter().filter(is_missing).collect();
    Snapshot {
        rotating: rotation.is_some(),
        total: nodes.len(),
        renewed: nodes.iter().filter(|node| is_renewed(&tls(node))).count(),
        trusting: nodes.iter().filter(|node| is_trusting(&tls(node))).count(),
        all_down: !missing.is_empty() && missing.iter().all(|node| node.status.state == NodeState::Down),
        missing: missing
            .iter()
            .map(|node| match node.status.state {
                NodeState::Down => format!("{} (down)", node.display_name()),
                _ => node.display_name().to_owned(),
            })
            .collect(),
    }
}

async fn fetch(connection: &Connection) -> Result<Snapshot, Failure> {
    let cluster = Cluster::from_wire(edit::cluster(connection).await?)?;
    let nodes = connection.control().list_nodes(v1::ListNodesRequest::default()).await?.into_inner().nodes;
    let nodes = nodes.into_iter().map(Node::from_wire).collect::<Result<Vec<_>, _>>()?;
    Ok(look(&cluster, &nodes))
}

/// Waits until every node has its new certificate and trusts the new root. `false`: Ctrl-C ended the waiting, not the rotation.
pub async fn wait(connection: &Connection, quiet: bool) -> Result<bool, Failure> {
    let mut view = View::new(quiet);
    let mut rotated_since: Option<Instant> = None;
    loop {
        let snapshot = fetch(connection).await?;
        view.show(&snapshot);
        if snapshot.rotating {
            rotated_since = None;
        } else if snapshot.missing.is_empty() || rotated_since.get_or_insert_with(Instant::now).elapsed() > SETTLE {
            view.finish();
            return Ok(true);
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = tokio::signal::ctrl_c() => {
                view.finish();
                eprintln!("The rotation goes on; `swarmctl node ls --format '{{{{.Hostname}}}} {{{{.TLSStatus}}}}'` shows how far it is.");
                return Ok(false);
            }
        }
    }
}

/// One line that changes on a terminal, a line for each news otherwise.
struct View {
    quiet: bool,
    bar: Option<ProgressBar>,
    last: String,
}

impl View {
    fn new(quiet: bool) -> Self {
        let style = || ProgressStyle::with_template("[{bar:30}] {msg}").expect("a valid template").progress_chars("=> ");
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| ProgressBar::new(1).with_style(style()));
        Self { quiet, bar, last: String::new() }
    }

    fn show(&mut self, snapshot: &Snapshot) {
        let line = snapshot.line();
        match &self.bar {
            Some(bar) => {
                bar.set_length(2 * snapshot.total as u64);
                bar.set_position((snapshot.renewed + snapshot.trusting) as u64);
                bar.set_message(line);
            }
            None if !self.quiet && line != self.last => {
                eprintln!("{line}");
                self.last = line;
            }
            None => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{ClusterId, NodeDescription, NodeId, RootRotation};

    const NEW_ROOT: &[u8] = b"-----BEGIN CERTIFICATE-----\n\
MIIBfDCCASGgAwIBAgIUQpARtt1eI/7dXPzNuir9Zy5Zyk4wCgYIKoZIzj0EAwIw\n\
EzERMA8GA1UEAwwIc3dhcm0tY2EwHhcNMjYxMTIyMTUwNzE3WhcNNDYxMTE3MTUw\n\
NzE3WjATMREwDwYDVQQDDAhzd2FybS1jYTBZMBMGByqGSM49AgEGCCqGSM49AwEH\n\
A0IABG6ufnFreTfJjOYWADasAxROF0HY8S+ynv/TzIzCF42WCbi7VP65wzR7AJsj\n\
dNFpNnf/aBO893NlYI/1FG+Di9CjUzBRMB0GA1UdDgQWBBQWj9zdxJJEfD1CsMeh\n\
XSI2CE0iMTAfBgNVHSMEGDAWgBQWj9zdxJJEfD1CsMehXSI2CE0iMTAPBgNVHRMB\n\
Af8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQDm97BQWx1S2TOMeb36coyha97U\n\
szQKb1hexGGW81seygIhAJ6LORAiASUdcm0hQ6u2D5GDF6FhsZZYB74oUXwizsK3\n\
-----END CERTIFICATE-----\n";

    fn node(number: u64, trust_root: &[u8], issued_by: Option<&[u8]>) -> Node {
        let (cert_issuer_subject, cert_issuer_public_key) = issued_by.and_then(issuer).unwrap_or_default();
        let tls_info = Some(TlsInfo { trust_root: trust_root.to_vec(), cert_issuer_subject, cert_issuer_public_key });
        let mut node = Node::new(NodeId::for_test(number));
        node.description = Some(NodeDescription { hostname: format!("n{number}"), tls_info, ..NodeDescription::default() });
        node.status.state = NodeState::Ready;
        node
    }

    fn rotating() -> Cluster {
        let mut cluster = Cluster::new(ClusterId::for_test(1));
        cluster.root_ca.ca_cert = b"old".to_vec();
        cluster.root_ca.root_rotation = Some(RootRotation { ca_cert: NEW_ROOT.to_vec(), ..RootRotation::default() });
        cluster
    }

    #[test]
    fn while_rotating_every_node_without_a_new_certificate_is_named() {
        let mut nodes = vec![node(1, b"old", Some(NEW_ROOT)), node(2, b"old", None), node(3, b"old", None)];
        nodes[2].status.state = NodeState::Down;
        let snapshot = look(&rotating(), &nodes);
        assert_eq!((snapshot.rotating, snapshot.total, snapshot.renewed, snapshot.trusting), (true, 3, 1, 0));
        assert_eq!(
            snapshot.line(),
            "root rotation: 1 of 3 nodes have their new certificate, 0 trust the new root (waiting for n2, n3 (down))"
        );
        nodes.remove(1);
        assert!(look(&rotating(), &nodes).line().ends_with("(waiting for n3 (down); `swarmctl node rm` gives up what is gone)"));
    }

    #[test]
    fn afterwards_only_nodes_that_are_up_are_waited_for() {
        let mut cluster = rotating();
        cluster.root_ca.ca_cert = cluster.root_ca.root_rotation.take().unwrap().ca_cert;
        let mut nodes = vec![node(1, NEW_ROOT, Some(NEW_ROOT)), node(2, b"old", Some(NEW_ROOT))];
        assert_eq!(look(&cluster, &nodes).missing, ["n2"]);
        nodes[1].status.state = NodeState::Down;
        let snapshot = look(&cluster, &nodes);
        assert_eq!((snapshot.rotating, snapshot.trusting, snapshot.missing.len()), (false, 1, 0));
    }
}
