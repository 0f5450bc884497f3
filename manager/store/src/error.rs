//! What can go wrong with the store as a whole.

use crate::backup::BackupError;
use crate::disk::DiskError;
use crate::raft::types::Member;
use crate::table::ApplyError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The store could not be opened, made or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Nothing was ever stored there, or making it was cut short: bootstrap or join.
    #[error("there is no store in {}; initialise a cluster or join one", .dir.display())]
    Empty { dir: PathBuf },
    #[error("{} holds a store already; open it, or remove the directory to begin anew", .dir.display())]
    Exists { dir: PathBuf },
    #[error("raft timing is not possible: {problem}")]
    Timing { problem: String },
    #[error("raft refused")]
    Raft { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("this manager is not the leader")]
    NotLeader { leader: Option<Member> },
    #[error("no answer of a majority of managers within {0:?}")]
    Timeout(Duration),
    #[error("no other manager has a vote, so that nobody can lead instead")]
    NoSuccessor,
    #[error("no other manager took the leadership in time; this one goes on leading")]
    NotTaken,
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The data key was given by the caller and is not in the store's directory.
    #[error("the data key is not kept by the store, which cannot seal it then")]
    KeyElsewhere,
    #[error("the store has stopped")]
    Stopped,
}

/// A proposal was not committed, or nobody knows.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// It was looked at and does not fit the present state; nothing was changed.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// Nothing was proposed; ask the leader.
    #[error("this manager is not the leader")]
    NotLeader { leader: Option<Member> },
    /// Leadership was lost on the way. The new leader may or may not commit it: look before trying again.
    #[error("leadership was lost before the change was confirmed; it may or may not have been made")]
    LeadershipLost { leader: Option<Member> },
    /// No majority answered in time. It may be committed later: look before trying again.
    #[error("no majority of managers confirmed the change within {0:?}; it may still be made")]
    Timeout(Duration),
    #[error("the change takes {bytes} bytes, which is more than the {limit} one transaction may take; split it or make it smaller")]
    TooLarge { bytes: usize, limit: usize },
    /// The log has no room or is broken; nothing was changed. Full disks mend themselves when space returns.
    #[error("the change cannot be written")]
    Disk(#[source] Arc<DiskError>),
    #[error("the store has stopped")]
    Stopped,
}

impl ProposeError {
    /// Whether the state moved on under the decision: look again and decide anew.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Refused(ApplyError::Stale { .. } | ApplyError::Missing { .. }))
    }
}
