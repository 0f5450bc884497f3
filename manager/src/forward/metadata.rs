//! What a manager tells the leader of the caller whose call it passes on (spec wire-behaviour 6, `SK/ca/forward.go`).

use crate::authorize::{ConnectionInfo, Door};
use crate::shared::Local;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::SocketAddr;

const CERT: HeaderName = HeaderName::from_static("forwarded_cert");
const NODE: HeaderName = HeaderName::from_static("forwarded_cert_cn");
const CLUSTER: HeaderName = HeaderName::from_static("forwarded_cert_org");
const UNIT: HeaderName = HeaderName::from_static("forwarded_cert_ou");
const ADDR: HeaderName = HeaderName::from_static("remote_addr");
const REDIRECT: HeaderName = HeaderName::from_static("redirect");

/// Whether another manager passed the call on already.
pub(super) fn was_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(REDIRECT) || headers.contains_key(CERT)
}

/// Adds who is behind a call. Calls of the local socket go on as the manager's own.
pub(super) fn mark(headers: &mut HeaderMap, door: Door, connection: Option<&ConnectionInfo>, local: &Local) {
    let peer = connection.and_then(|connection| connection.peer.as_deref());
    let addr = match peer {
        // The agent beside this manager comes by way of the loopback.
        Some(peer) if peer.node_id == local.id => Some(SocketAddr::new(local.addr, 0)),
        _ => connection.and_then(|connection| connection.addr),
    };
    let addr = addr.map_or_else(|| HeaderValue::from_static("local"), |addr| text(&addr.to_string()));
    headers.append(REDIRECT, addr.clone());
    if door == Door::Local {
        return;
    }
    headers.insert(CERT, HeaderValue::from_static("true"));
    // Empty without a certificate: the leader must not take this manager's rights for the caller's.
    headers.insert(NODE, text(peer.map_or("", |peer| peer.node_id.as_str())));
    headers.insert(CLUSTER, text(peer.map_or("", |peer| peer.cluster_id.as_str())));
    headers.remove(UNIT);
    for unit in peer.map_or(&[][..], |peer| &peer.units) {
        headers.append(UNIT, text(unit));
    }
    if peer.is_none() {
        headers.insert(UNIT, text(""));
    }
    headers.insert(ADDR, addr);
}

/// Ids and addresses are plain ASCII; a unit that is not gives no right either.
fn text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ca::PeerIdentity;
    use skep_types::{ClusterId, NodeId};
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    fn local() -> Local {
        let advertise = "192.0.2.1:2377".parse().unwrap();
        Local { id: NodeId::for_test(1), addr: "192.0.2.1".parse().unwrap(), advertise }
    }

    fn connection(node: u64) -> ConnectionInfo {
        let peer = PeerIdentity {
            node_id: NodeId::for_test(node),
            units: vec!["swarm-worker".into(), "other".into()],
            cluster_id: ClusterId::for_test(9),
            not_before: UNIX_EPOCH,
            not_after: UNIX_EPOCH,
            chain: Vec::new(),
        };
        ConnectionInfo { peer: Some(Arc::new(peer)), addr: Some("127.0.0.1:5000".parse().unwrap()) }
    }

    fn marked(door: Door, connection: &ConnectionInfo) -> HeaderMap {
        let mut headers = HeaderMap::new();
        mark(&mut headers, door, Some(connection), &local());
        headers
    }

    #[test]
    fn the_certificate_of_the_caller_goes_on() {
        let headers = marked(Door::Remote, &connection(5));
        assert_eq!(headers["forwarded_cert"], "true");
        assert_eq!(headers["forwarded_cert_cn"], NodeId::for_test(5).as_str());
        assert_eq!(headers.get_all("forwarded_cert_ou").iter().count(), 2);
        assert_eq!(headers["remote_addr"], "127.0.0.1:5000");
        assert!(was_forwarded(&headers));
        // The agent beside this manager is where the manager is.
        assert_eq!(marked(Door::Remote, &connection(1))["remote_addr"], "192.0.2.1:0");
    }

    #[test]
    fn who_has_no_certificate_does_not_get_ours() {
        let headers = marked(Door::Remote, &ConnectionInfo { peer: None, addr: Some("198.51.100.1:1".parse().unwrap()) });
        assert_eq!(headers["forwarded_cert"], "true");
        for name in ["forwarded_cert_cn", "forwarded_cert_org", "forwarded_cert_ou"] {
            assert_eq!(headers[name], "", "{name}");
        }
    }

    #[test]
    fn the_local_socket_speaks_as_the_manager() {
        let headers = marked(Door::Local, &ConnectionInfo::default());
        assert!(!headers.contains_key("forwarded_cert") && headers.contains_key("redirect"));
    }
}
