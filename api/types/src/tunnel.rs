//! Keys of encrypted networks: what nodes tell of theirs, and how far a change to new ones is.

use crate::Timestamp;
use serde::{Deserialize, Serialize};

/// Whether a node can encrypt what it sends to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encrypting {
    /// It never said; so a node that does not know of it.
    #[default]
    Unsaid,
    Able,
    /// With the reason, in words.
    Unable(String),
}

/// The public half of a node's WireGuard key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelKey {
    /// A node has one key per epoch of the cluster.
    pub epoch: u32,
    /// X25519, 32 bytes.
    pub public: Vec<u8>,
    /// UDP port of the node's end of that epoch's tunnels.
    pub port: u16,
}

/// How far the cluster is from one epoch's keys to the next. Between two steps every node has done what the former asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyStep {
    /// One epoch.
    #[default]
    Settled,
    /// Nodes make keys of the next epoch and tell their public halves.
    Making,
    /// All have told; tunnels of both epochs come to stand everywhere.
    Both,
    /// Nodes send by the next epoch's tunnels, and receive by both.
    Sending,
}

/// The epochs of the keys between nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TunnelEpochs {
    /// The oldest in use; 0 = nothing was ever to be encrypted.
    pub oldest: u32,
    pub step: KeyStep,
    /// When the step began; `None` before the first.
    pub since: Option<Timestamp>,
}

impl TunnelEpochs {
    /// The newest that nodes have keys of.
    #[must_use]
    pub fn newest(&self) -> u32 {
        if self.step == KeyStep::Settled { self.oldest } else { self.oldest.saturating_add(1) }
    }

    /// By whose tunnels nodes send.
    #[must_use]
    pub fn sending(&self) -> u32 {
        if self.step == KeyStep::Sending { self.newest() } else { self.oldest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_send_by_what_all_have() {
        let at = |step| {
            let epochs = TunnelEpochs { oldest: 4, step, since: None };
            (epochs.oldest, epochs.sending(), epochs.newest())
        };
        assert_eq!(at(KeyStep::Settled), (4, 4, 4));
        assert_eq!((at(KeyStep::Making), at(KeyStep::Both), at(KeyStep::Sending)), ((4, 4, 5), (4, 4, 5), (4, 5, 5)));
        assert_eq!(TunnelEpochs::default().newest(), 0);
    }
}
