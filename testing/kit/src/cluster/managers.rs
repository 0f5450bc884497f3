use super::Cluster;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use skep_proto::skep::status_response::Role;
use std::time::Duration;

/// A manager's copy of the state, as it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub host: usize,
    pub leads: bool,
    pub raft_id: u64,
    pub term: u64,
    pub revision: u64,
    pub hash: Vec<u8>,
}

impl Cluster {
    /// # Errors
    /// If skepd does not answer, or runs no manager.
    pub fn replica(&self, host: usize) -> Result<Replica> {
        ensure!(!self.hosts[host].is_paused(), "{} is paused", self.hosts[host].name());
        let status = self.api(host)?.status(true)?;
        let replica = status.replica.with_context(|| format!("{} runs no manager: {}", self.hosts[host].name(), status.problem))?;
        Ok(Replica {
            host,
            leads: status.leader,
            raft_id: replica.raft_id,
            term: replica.term,
            revision: replica.revision,
            hash: replica.hash,
        })
    }

    /// What all managers say that answer.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].is_up()).filter_map(|host| self.replica(host).ok()).collect()
    }

    /// The first host that says that it is a manager.
    ///
    /// # Errors
    /// If there is none.
    pub fn a_manager(&self) -> Result<usize> {
        let manages = |host: &usize| self.api(*host).and_then(|api| api.status(false)).is_ok_and(|status| status.role() == Role::Manager);
        (0..self.hosts.len()).filter(|host| self.hosts[*host].is_up()).find(manages).context("no manager answers")
    }

    /// The host that leads: of those that say so, the one in the latest term.
    ///
    /// # Errors
    /// If none says so.
    pub fn leader(&self) -> Result<usize> {
        let replicas = self.replicas();
        let leader = replicas.iter().filter(|replica| replica.leads).max_by_key(|replica| replica.term);
        Ok(leader.with_context(|| format!("nobody leads: {replicas:?}"))?.host)
    }

    /// # Errors
    /// If nobody leads within `limit`.
    pub fn wait_leader(&self, limit: Duration) -> Result<usize> {
        eventually(limit, "a leader", || self.leader())
    }

    /// A manager that does not lead.
    ///
    /// # Errors
    /// If there is none.
    pub fn follower(&self) -> Result<usize> {
        let found = self.replicas().into_iter().find(|replica| !replica.leads);
        Ok(found.context("every manager that answers leads")?.host)
    }

    /// # Errors
    /// If nobody leads.
    pub fn term(&self) -> Result<u64> {
        self.replicas().iter().map(|replica| replica.term).max().context("no manager answers")
    }

    /// Waits until these managers hold the same state, and one of them leads in the term they all are in.
    ///
    /// # Errors
    /// If they do not within `limit`, with what each has.
    pub fn wait_converged(&self, hosts: impl IntoIterator<Item = usize> + Clone, limit: Duration) -> Result<Replica> {
        eventually(limit, "all managers hold the same", || {
            let replicas = hosts.clone().into_iter().map(|host| self.replica(host)).collect::<Result<Vec<_>>>()?;
            let first = replicas.first().context("no managers")?;
            let same = |other: &Replica| (other.term, other.revision, &other.hash) == (first.term, first.revision, &first.hash);
            ensure!(replicas.iter().all(same), "they differ: {:#?}", replicas.iter().map(brief).collect::<Vec<_>>());
            let leaders: Vec<&Replica> = replicas.iter().filter(|replica| replica.leads).collect();
            ensure!(leaders.len() == 1, "{} lead", leaders.len());
            Ok(leaders[0].clone())
        })
    }
}

fn brief(replica: &Replica) -> String {
    let hash: String = replica.hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let leads = if replica.leads { ", leads" } else { "" };
    format!("host {}: term {}, revision {}, state {hash}…{leads}", replica.host, replica.term, replica.revision)
}
