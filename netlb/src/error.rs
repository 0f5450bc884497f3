//! What can go wrong with the network of a node.

use std::io;
use std::path::PathBuf;

/// Why the network is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlbError {
    #[error("could not {step} the network namespace {path}")]
    Namespace { path: PathBuf, step: &'static str, source: io::Error },
    #[error("could not use netlink in {place}")]
    Netlink { place: String, source: io::Error },
    #[error("could not create link {link}")]
    CreateLink { link: String, source: io::Error },
    #[error("could not change {place}: {change}")]
    Change { place: String, change: String, source: io::Error },
    #[error("could not write the nftables table {table} in {place}")]
    Table { table: String, place: String, source: io::Error },
    #[error("could not set {path}; is /proc/sys writable?")]
    Sysctl { path: PathBuf, source: io::Error },
    #[error("all {0} links between this host and sandboxes of networks are taken; remove networks that are not used")]
    SlotsUsedUp(u32),
    #[error("network {network} cannot span nodes as asked: {reason}")]
    BadOverlay { network: String, reason: String },
    #[error(
        "could not make the VXLAN device of network {network} (id {vni}, UDP port {port}); \
         if other software of this host has that id or port, give the cluster another port"
    )]
    Vxlan { network: String, vni: u32, port: u16, source: io::Error },
    #[error(transparent)]
    Secure(#[from] crate::secure::SecureError),
    #[error(
        "this host's kernel has no IPVS, or one that conntrack does not see (it takes the modules ip_vs and ip_vs_rr, built with \
         CONFIG_IP_VS_NFCT); load them, or start with --lb-driver nftables"
    )]
    NoIpvs(#[source] io::Error),
    #[error("could not tell IPVS in {place} what leads where; is the module ip_vs_rr there? --lb-driver nftables does without")]
    Ipvs { place: String, source: io::Error },
    #[error("task {task} has two addresses of one family in network {network}")]
    TwoAddresses { task: String, network: String },
    #[error("network {network} cannot be joined by link {parent} of this host: {reason}")]
    NotOnLan { network: String, parent: String, reason: String },
    #[error("the network namespace {path} cannot be attached: {reason}")]
    NotAttached { path: PathBuf, reason: String },
    #[error("the namespace of task {task} was removed while it was made")]
    Removed { task: String },
    #[error("{} steps failed: {}", .0.len(), joined(.0))]
    Several(Vec<NetlbError>),
    #[error("the wanted network is not in place: {0}")]
    NotApplied(String),
    /// The same failure for several who asked.
    #[error(transparent)]
    Shared(std::sync::Arc<NetlbError>),
    #[error("the network part of this daemon has ended")]
    Stopped,
}

impl NetlbError {
    /// Nothing, the one error, or all of them.
    pub(crate) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// The text with all causes.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

fn joined(errors: &[NetlbError]) -> String {
    errors.iter().map(NetlbError::chain).collect::<Vec<_>>().join("; ")
}
