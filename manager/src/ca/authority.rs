//! What signs for the cluster at this moment, as the store has it.

use super::external::External;
use crate::clock::system_time;
use crate::drive::chain;
use skep_ca::{BadKey, CaError, RootBundle, RootCa, Secret, Subject};
use skep_types::{Certificate, Cluster, ClusterId, ClusterRootCa, ExternalCa, IssuanceState, Node, RootRotation, Sensitive, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// What is needed to sign, read and checked: doing that for each node would cost more than a signature.
#[derive(Debug)]
pub(super) struct Authority {
    means: Means,
    cluster: ClusterId,
    lifetime: Duration,
    made_of: Material,
}

#[derive(Debug)]
enum Means {
    /// A root with its key.
    Own(RootCa),
    /// Somebody else signs.
    Outside(External),
}

/// What in the cluster object the signer was made of.
#[derive(Debug, PartialEq, Eq)]
struct Material {
    ca_cert: Vec<u8>,
    ca_key: Sensitive<Vec<u8>>,
    rotation: Option<RootRotation>,
    external: Vec<ExternalCa>,
}

impl Material {
    fn is_of(&self, cluster: &Cluster) -> bool {
        let ca = &cluster.root_ca;
        self.ca_cert == ca.ca_cert
            && self.ca_key == ca.ca_key
            && self.rotation == ca.root_rotation
            && self.external == cluster.spec.ca_config.external_cas
    }
}

impl Authority {
    /// The authority of this cluster object; `before` if it is still the one.
    pub(super) fn of(cluster: &Cluster, before: Option<Arc<Self>>) -> Result<Arc<Self>, CaError> {
        if let Some(before) = before.filter(|before| before.is_of(cluster)) {
            return Ok(before);
        }
        let means = match External::of(cluster) {
            Some(external) => Means::Outside(external),
            None => Means::Own(root_of(&cluster.root_ca)?),
        };
        let ClusterRootCa { ca_cert, ca_key, root_rotation, .. } = cluster.root_ca.clone();
        let external = cluster.spec.ca_config.external_cas.clone();
        Ok(Arc::new(Self {
            means,
            cluster: cluster.id.clone(),
            lifetime: lifetime(cluster),
            made_of: Material { ca_cert, ca_key, rotation: root_rotation, external },
        }))
    }

    pub(super) fn is_of(&self, cluster: &Cluster) -> bool {
        self.made_of.is_of(cluster) && self.lifetime == lifetime(cluster) && self.cluster == cluster.id
    }

    /// Who signs in place of the cluster's own key.
    pub(super) fn outside(&self) -> Option<(&External, &ClusterId)> {
        match &self.means {
            Means::Outside(external) => Some((external, &self.cluster)),
            Means::Own(_) => None,
        }
    }

    /// The root with its key; `None`: somebody outside signs.
    pub(super) fn own(&self) -> Option<&RootCa> {
        match &self.means {
            Means::Own(root) => Some(root),
            Means::Outside(_) => None,
        }
    }

    /// What nodes' certificates live.
    pub(super) fn lifetime(&self) -> Duration {
        if self.lifetime < skep_ca::MIN_LIFETIME { skep_ca::DEFAULT_LIFETIME } else { self.lifetime }
    }

    /// The node's certificate record with its decision: issued, or failed for good. An error may pass; `None`: somebody outside has
    /// to be asked. Takes a quarter of a millisecond of computing.
    pub(super) fn certify(&self, node: &Node, now: Timestamp) -> Option<Result<Certificate, CaError>> {
        match &self.means {
            Means::Own(root) => Some(self.sign(root, node, now)),
            Means::Outside(_) => None,
        }
    }

    fn sign(&self, root: &RootCa, node: &Node, now: Timestamp) -> Result<Certificate, CaError> {
        let wanted = &node.certificate;
        let subject = Subject { node: node.id.clone(), role: node.role, cluster: self.cluster.clone() };
        Ok(match root.issue(&wanted.csr, &subject, self.lifetime, system_time(now)) {
            Ok(issued) => Certificate {
                state: IssuanceState::Issued,
                certificate: issued.chain_pem.into_bytes(),
                role: node.role,
                err: String::new(),
                ..wanted.clone()
            },
            Err(error @ CaError::Request(_)) => {
                Certificate { state: IssuanceState::Failed, err: chain(&error), certificate: Vec::new(), ..wanted.clone() }
            }
            Err(error) => return Err(error),
        })
    }
}

fn lifetime(cluster: &Cluster) -> Duration {
    cluster.spec.ca_config.node_cert_expiry.unwrap_or(skep_ca::DEFAULT_LIFETIME)
}

/// During a root rotation the new key signs and the old root is trusted.
fn root_of(ca: &ClusterRootCa) -> Result<RootCa, CaError> {
    match &ca.root_rotation {
        Some(rotation) => {
            let old = RootBundle::parse(&text(&ca.ca_cert))?;
            RootCa::during_rotation(&old, &text(&rotation.ca_cert), &secret(&rotation.ca_key), &text(&rotation.cross_signed_ca_cert))
        }
        None if ca.ca_key.0.is_empty() => Err(BadKey::NotPem.into()),
        None => RootCa::load(&text(&ca.ca_cert), &secret(&ca.ca_key)),
    }
}

/// PEM as the store holds it; what is not text is refused by whoever parses it.
pub(super) fn text(pem: &[u8]) -> String {
    String::from_utf8_lossy(pem).into_owned()
}

pub(super) fn secret(pem: &Sensitive<Vec<u8>>) -> Secret {
    Secret::new(text(&pem.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::NodeId;
    use std::time::SystemTime;

    fn cluster() -> Cluster {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let mut cluster = Cluster::new(ClusterId::for_test(1));
        cluster.root_ca.ca_cert = root.bundle().pem().as_bytes().to_vec();
        cluster.root_ca.ca_key = Sensitive(root.key_pem().expose().as_bytes().to_vec());
        cluster
    }

    #[test]
    fn an_authority_is_read_again_only_when_it_changed() {
        let mut cluster = cluster();
        let first = Authority::of(&cluster, None).unwrap();
        cluster.meta.version = skep_types::Version(7);
        cluster.spec.task_history_retention_limit = 9;
        assert!(Arc::ptr_eq(&first, &Authority::of(&cluster, Some(first.clone())).unwrap()));
        cluster.spec.ca_config.node_cert_expiry = Some(Duration::from_secs(7200));
        let second = Authority::of(&cluster, Some(first.clone())).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        cluster.root_ca = self::cluster().root_ca;
        assert!(!second.is_of(&cluster));
        cluster.root_ca.ca_key = Sensitive(Vec::new());
        assert!(Authority::of(&cluster, Some(second)).is_err());
    }

    #[test]
    fn a_request_that_can_never_be_signed_fails_with_its_reason() {
        let authority = Authority::of(&cluster(), None).unwrap();
        assert!(authority.outside().is_none());
        let mut node = Node::new(NodeId::for_test(2));
        node.certificate.csr = b"junk".to_vec();
        let decided = authority.certify(&node, Timestamp::from_secs(1_800_000_000)).unwrap().unwrap();
        assert_eq!(decided.state, IssuanceState::Failed);
        assert!(decided.err.contains("PKCS#10"), "{}", decided.err);
        assert_eq!(decided.csr, b"junk", "nodes compare it with what they sent");
    }
}
