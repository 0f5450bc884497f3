//! The service `Certificates`: what the Docker API on TCP and its clients show each other.
//!
//! It is on the local socket only, which is root's: nobody can ask for these certificates over a network. It needs no leader, for every
//! manager has the root's key, and nothing is stored.

use super::authority::Authority;
use crate::authorize::{Facts as _, Standing};
use crate::clock::system_time;
use crate::control::errors::{id, invalid};
use crate::drive::chain;
use crate::shared::Shared;
use skep_ca::{CaError, Guest, Issued};
use skep_proto::skep::certificates_server::Certificates;
use skep_proto::skep::{CheckManagerRequest, CheckManagerResponse, IssueClientRequest, IssueServerRequest, IssuedCertificate};
use skep_types::{ClusterView as _, FieldError, NodeId, NodeRole};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(crate) struct CertificatesService {
    shared: Arc<Shared>,
}

/// How long a certificate shall live.
enum Life {
    AsNodes,
    For(Duration),
}

impl CertificatesService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn issue(&self, csr: &[u8], guest: &Guest, life: Life) -> Result<IssuedCertificate, Status> {
        let view = self.shared.store.view();
        let cluster =
            view.cluster().ok_or_else(|| Status::unavailable("this manager has not received the cluster's state yet; try again"))?;
        let authority = Authority::of(cluster, None).map_err(|error| Status::failed_precondition(chain(&error)))?;
        let root = authority.own().ok_or_else(|| {
            Status::failed_precondition(
                "an external CA signs for this cluster, and the managers do not have its key: there are no certificates for the Docker API on \
                 TCP; use its Unix socket, over SSH from elsewhere (docker -H ssh://HOST)",
            )
        })?;
        let lifetime = match life {
            Life::AsNodes => authority.lifetime(),
            Life::For(lifetime) => lifetime,
        };
        let now = system_time(self.shared.now());
        let issued = root.issue_guest(csr, guest, &cluster.id, lifetime, now).map_err(|error| match error {
            CaError::Request(_) => invalid(FieldError::new("csr", chain(&error))),
            _ => Status::internal(chain(&error)),
        })?;
        let coming = cluster.root_ca.root_rotation.as_ref().map(|rotation| rotation.ca_cert.as_slice()).unwrap_or_default();
        let roots = [cluster.root_ca.ca_cert.as_slice(), coming].concat();
        let Issued { chain_pem, not_before, not_after } = issued;
        Ok(IssuedCertificate {
            chain: chain_pem.into_bytes(),
            roots,
            not_before: Some(not_before.into()),
            not_after: Some(not_after.into()),
        })
    }
}

#[tonic::async_trait]
impl Certificates for CertificatesService {
    async fn issue_client(&self, request: Request<IssueClientRequest>) -> Result<Response<IssuedCertificate>, Status> {
        let request = request.into_inner();
        let guest = Guest::client(&request.name).map_err(|error| invalid(FieldError::new("name", error.to_string())))?;
        let lifetime = request.lifetime.map(Duration::try_from).transpose().ok().and_then(|asked| skep_ca::client_lifetime(asked).ok());
        let lifetime = lifetime.ok_or_else(|| invalid(FieldError::new("lifetime", skep_ca::BadGuest::Lifetime.to_string())))?;
        let issued = self.issue(&request.csr, &guest, Life::For(lifetime))?;
        tracing::info!(name = request.name, seconds = lifetime.as_secs(), "a client of the Docker API got a certificate");
        Ok(Response::new(issued))
    }

    async fn issue_server(&self, request: Request<IssueServerRequest>) -> Result<Response<IssuedCertificate>, Status> {
        let request = request.into_inner();
        let wrong = |error: String| invalid(FieldError::new("names", error));
        let guest = Guest::server(&request.names).map_err(|error| wrong(error.to_string()))?;
        let view = self.shared.store.view();
        let is_node = |name: &&String| name.parse::<NodeId>().is_ok_and(|id| view.node(&id).is_some());
        if let Some(name) = request.names.iter().find(is_node) {
            return Err(wrong(format!("{name:?} is the id of a node")));
        }
        Ok(Response::new(self.issue(&request.csr, &guest, Life::AsNodes)?))
    }

    async fn check_manager(&self, request: Request<CheckManagerRequest>) -> Result<Response<CheckManagerResponse>, Status> {
        let id: NodeId = id("node_id", &request.get_ref().node_id)?;
        let is_manager = match self.shared.standing(&id) {
            Standing::Node(role) => role == NodeRole::Manager,
            Standing::NobodyKnows | Standing::Unlisted | Standing::Removed => false,
        };
        Ok(Response::new(CheckManagerResponse { is_manager }))
    }
}
