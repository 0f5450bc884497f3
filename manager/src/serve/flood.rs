//! Connections that the HTTP/2 stack ended because of a flood.

use crate::authorize::ConnectionInfo;
use h2::Reason;
use skep_ca::{Manners, PeerIdentity};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

/// Who is at the other end of a connection, and where to tell on it.
pub(super) struct Culprit {
    manners: Manners,
    peer: Option<Arc<PeerIdentity>>,
    address: Option<IpAddr>,
}

impl Culprit {
    pub(super) fn new(manners: &Manners, connection: &ConnectionInfo) -> Self {
        let address = connection.addr.map(|address| address.ip());
        Self { manners: manners.clone(), peer: connection.peer.clone(), address }
    }

    /// Tells, if the connection ended for its client's fault. Its next ones are refused when that happened too often.
    pub(super) fn judge(&self, error: &hyper::Error) {
        if is_flood(error) {
            self.manners.flooded(self.peer.as_deref(), self.address);
        }
    }
}

/// Whether we ended the connection with `ENHANCE_YOUR_CALM`: streams that were reset as soon as they were opened, headers without end
/// and the like (RFC 9113, section 7; h2 counts them).
fn is_flood(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM))
}
