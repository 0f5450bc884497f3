//! What answers of the Control API leave out (`SK/manager/controlapi/{cluster,secret}.go`).

use crate::v1;

/// Takes keys out of a cluster and shows the defaults of what is not set. Join tokens stay: whoever may ask for the
/// cluster may let nodes in.
///
/// The signing certificate is no secret, but a client that sent it back without its key would ask for another CA.
pub fn redact_cluster(cluster: &mut v1::Cluster) {
    if let Some(ca) = cluster.spec.as_mut().and_then(|spec| spec.ca_config.as_mut()) {
        ca.signing_ca_key.clear();
        ca.signing_ca_cert.clear();
    }
    if let Some(root) = &mut cluster.root_ca {
        root.ca_key.clear();
        if let Some(rotation) = &mut root.root_rotation {
            rotation.ca_key.clear();
        }
    }
    cluster.unlock_keys.clear();
    cluster.network_bootstrap_keys.clear();
    cluster.encryption_key_lamport_clock = 0;
    cluster.fips = false;
    if cluster.default_address_pool.is_empty() {
        cluster.default_address_pool.push("10.0.0.0/8".to_owned());
    }
    if cluster.subnet_size == 0 {
        cluster.subnet_size = 24;
    }
    if cluster.vxlanudp_port == 0 {
        cluster.vxlanudp_port = 4789;
    }
}

/// Takes the payload out of a secret: agents get it by their assignments, clients never.
pub fn redact_secret(secret: &mut v1::Secret) {
    if let Some(spec) = &mut secret.spec {
        spec.data.clear();
    }
}
