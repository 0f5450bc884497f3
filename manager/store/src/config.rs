//! How a store is kept.

use crate::disk::key::DataKey;
use crate::election::Waits;
use crate::error::StoreError;
use openraft::SnapshotPolicy;
use skep_types::{Timestamp, UnlockKey};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where time stamps come from: asked once per proposal, on the leader.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    })
}

/// Heartbeats and elections between managers. Cannot be changed while a store is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Voters keep their word to a leader for three of these after its last sign of life.
    pub heartbeat: Duration,
    /// Without a sign of life for a random time in this range a manager asks for votes. More than three heartbeats.
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Timing {
    pub(crate) fn waits(&self) -> Waits {
        Waits { beat: self.heartbeat, lease: 3 * self.heartbeat, shortest: self.election_min, longest: self.election_max }
    }
}

impl Default for Timing {
    /// Slow enough to keep a leader whose disk is busy; a new one is found within two seconds.
    fn default() -> Self {
        Self { heartbeat: Duration::from_millis(100), election_min: Duration::from_millis(500), election_max: Duration::from_millis(1000) }
    }
}

/// Below this nothing fits beside the reserve.
pub(crate) const MIN_SEGMENT_BYTES: u64 = 128 * 1024;

/// How a store is kept.
#[derive(Clone)]
pub struct StoreConfig {
    /// The directory `raft`; made (0700) if missing.
    pub dir: PathBuf,
    /// `None`: the key is in the file `dek` of the directory, made at bootstrap or join.
    pub key: Option<DataKey>,
    /// Seals the file `dek` when it is made, and opens it; see [`Store::rewrap`](crate::Store::rewrap).
    pub unlock: Option<UnlockKey>,
    pub clock: Clock,
    pub timing: Timing,
    /// Entries between snapshots.
    pub snapshot_entries: u64,
    /// A snapshot is also made when the log has grown by so many bytes since the last.
    pub snapshot_log_bytes: u64,
    /// Entries kept behind a snapshot for slow followers.
    pub keep_entries: u64,
    /// Size of a log segment, at least 128 KiB; one more is always kept ready. A transaction has to fit one.
    pub segment_bytes: u64,
    /// Bytes of the newest entries kept in memory.
    pub cache_bytes: usize,
    /// Changes held for feed readers that are slow.
    pub feed_changes: usize,
    /// How long a proposal waits for a majority.
    pub propose_timeout: Duration,
}

impl StoreConfig {
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            key: None,
            unlock: None,
            clock: system_clock(),
            timing: Timing::default(),
            snapshot_entries: 10_000,
            snapshot_log_bytes: 64 << 20,
            keep_entries: 500,
            segment_bytes: 4 << 20,
            cache_bytes: 1 << 20,
            feed_changes: 16_384,
            propose_timeout: Duration::from_secs(30),
        }
    }
}

/// openraft's own times, none of which is what its name says here:
/// * `heartbeat_interval` bounds an append (`raft/polls.rs`, `pulse`, sends the heartbeats), and 1.5 times it is a tick;
/// * `election_timeout_min` bounds a vote;
/// * `election_timeout_max` is the leader lease.
pub(crate) fn raft_config(config: &StoreConfig) -> Result<openraft::Config, StoreError> {
    let waits = config.timing.waits();
    let timing = |problem: &str| StoreError::Timing { problem: problem.into() };
    if waits.shortest <= waits.lease {
        return Err(timing("a manager has to wait more than three heartbeats for its leader"));
    }
    if waits.longest <= waits.shortest {
        return Err(timing("the longest wait for a leader has to be longer than the shortest"));
    }
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "skep".into(),
        heartbeat_interval: millis(waits.lease * 2 / 3),
        election_timeout_min: millis(waits.lease * 5 / 6),
        election_timeout_max: millis(waits.lease),
        enable_elect: false,
        enable_heartbeat: false,
        install_snapshot_timeout: 10_000,
        snapshot_max_chunk_size: 1 << 20,
        max_payload_entries: 64,
        replication_lag_threshold: config.snapshot_entries.saturating_mul(2),
        // `store.rs`, `purge`, does it, by a number that can be changed.
        max_in_snapshot_log_to_keep: u64::MAX,
        snapshot_policy: SnapshotPolicy::Never,
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| timing(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_cannot_work_are_refused() {
        let mut config = StoreConfig::new("/nowhere");
        let raft = raft_config(&config).unwrap();
        assert_eq!((raft.heartbeat_interval, raft.election_timeout_min, raft.election_timeout_max), (200, 250, 300));
        config.timing.election_min = Duration::from_millis(300);
        assert!(matches!(raft_config(&config), Err(StoreError::Timing { .. })));
        config.timing.election_min = config.timing.election_max;
        assert!(matches!(raft_config(&config), Err(StoreError::Timing { .. })));
    }
}
