//! Where threads and chance come from: the operating system, or the simulator of this thread (`sim.rs`).

use crate::raft::types::RaftId;
use std::ops::RangeInclusive;
use std::time::Duration;
use tokio::task::JoinError;

/// Runs what blocks where waiting does no harm.
pub(crate) async fn blocking<T: Send + 'static>(step: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    #[cfg(feature = "sim")]
    if crate::sim::simulator().is_some() {
        return Ok(step());
    }
    tokio::task::spawn_blocking(step).await
}

/// A random time for `who` to wait.
pub(crate) fn between(who: RaftId, range: RangeInclusive<Duration>) -> Duration {
    #[cfg(feature = "sim")]
    if let Some(simulator) = crate::sim::simulator() {
        return *range.start() + (*range.end() - *range.start()).mul_f64(simulator.chance(who));
    }
    let _ = who; // only a simulator asks whose it is
    rand::random_range(range)
}

/// Whether a simulator has put in this fault: never, without one.
#[cfg(feature = "sim")]
pub(crate) fn has_fault(fault: crate::sim::Fault) -> bool {
    crate::sim::simulator().is_some_and(|simulator| simulator.has(fault))
}
