//! What time it is: the leader's clock stamps everything that is written. Tests bring their own [`Clock`](skep_store::Clock).

use skep_store::Clock;
use skep_types::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A timer may fire a little early by the wall clock, or the wall clock may be set back: never ask again sooner than this.
const LEAST_SLEEP: Duration = Duration::from_millis(1);
/// The wall clock may be set: whoever waits for a time looks at it this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// Ends when the clock should show `at`, or a while before, so that whoever waits sees whether the clock was set; never if `None`.
pub(crate) async fn sleep_towards(clock: &Clock, at: Option<Timestamp>) {
    let Some(at) = at else { return std::future::pending().await };
    tokio::time::sleep(at.since(clock()).clamp(LEAST_SLEEP, LONGEST_SLEEP)).await;
}

/// The same moment for APIs that want the standard type. Times before 1970 become 1970.
pub(crate) fn system_time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(at.0).unwrap_or(0))
}

/// The inverse of [`system_time`].
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
