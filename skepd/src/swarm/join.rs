//! Becoming a member of a cluster that exists.

use super::found::node_file;
use super::manager::bind;
use super::{BadRequest, Seat, Swarm};
use crate::address;
use crate::certificate::{CertificateError, Invitation, join};
use crate::parts::NodeParts;
use anyhow::{Result, anyhow};
use skep_ca::{JoinToken, NodeRole};
use skep_proto::skep::{JoinRequest, JoinResponse, status_response::Role};
use skep_types::Availability;

impl Swarm {
    /// Gets a certificate by the token, whose role decides what starts here. `node.json` is written last: before it, nothing
    /// counts; after it, a manager that the others do not have yet announces itself until they do.
    ///
    /// # Errors
    /// [`BadRequest`] for what the caller can cure.
    pub async fn join(parts: &NodeParts, request: JoinRequest) -> Result<(Self, JoinResponse)> {
        let addresses = address::choose(&parts.config, &request.listen_addr, &request.advertise_addr).map_err(BadRequest)?;
        let availability: Result<Availability, _> = skep_proto::parse("availability", request.availability);
        availability.map_err(|error| BadRequest(anyhow!("{error}")))?;
        let token: Result<JoinToken, _> = request.token.parse();
        let token = token.map_err(|error| BadRequest(CertificateError::Token(error).into()))?;
        let invitation = Invitation { token, remotes: request.remote_addrs, availability: request.availability };
        // The token does not tell the role, and a worker needs its port only if it is promoted.
        if let Err(error) = bind(addresses.listen).await {
            tracing::warn!(error = %format!("{error:#}"), "this node could not be a manager");
        }
        let admission = join(&invitation).await.map_err(|error| {
            let callers = error.is_the_callers();
            let error = anyhow::Error::from(error);
            if callers { BadRequest(error).into() } else { error }
        })?;
        skep_failpoint::failpoint!("skepd.join.admitted");
        let role = admission.identity.role();
        let mut node = node_file(&admission.identity, addresses, 0);
        node.managers = invitation.remotes;
        let response =
            JoinResponse { node_id: node.node_id.clone(), cluster_id: node.cluster_id.clone(), role: Role::from(Some(role)) as i32 };
        parts.vault.hold(admission.unlock).await;
        parts.vault.adopt(&parts.security, admission.identity).await?;
        skep_failpoint::failpoint!("skepd.join.identity");
        node.save(&parts.config.data_dir)?;
        skep_failpoint::failpoint!("skepd.join.done");
        tracing::info!(cluster = response.cluster_id, node = response.node_id, %role, "joined a cluster");
        let mut swarm = Self::new(parts, node, Seat::Worker);
        if role == NodeRole::Manager {
            swarm.follow_role().await;
        }
        Ok((swarm, response))
    }
}
