//! Whether a manager can be reached, told by the session to those who act on their own when none can.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A node counts as cut off after so many heartbeat periods without a session: a change of leader takes less.
const GRACE_PERIODS: u32 = 2;
/// And never sooner than this, for clusters whose heartbeats are quick.
const LEAST_GRACE: Duration = Duration::from_secs(5);

/// Of managers that name none (wire-behaviour 8.1).
const DEFAULT_PERIOD: Duration = Duration::from_secs(5);

/// Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Reach(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: watch::Sender<State>,
    least_grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody looks for managers: an engine without a session.
    Unwatched,
    Connected,
    Lost {
        cut_off_at: Instant,
    },
}

impl Default for Reach {
    fn default() -> Self {
        Self::with_least_grace(LEAST_GRACE)
    }
}

impl Reach {
    pub(crate) fn with_least_grace(least_grace: Duration) -> Self {
        Self(Arc::new(Shared { state: watch::Sender::new(State::Unwatched), least_grace }))
    }

    /// There is a session.
    pub(crate) fn connected(&self) {
        self.0.state.send_replace(State::Connected);
    }

    /// There is none any more. `period` is the last heartbeat's, if there was one. Saying it again changes nothing.
    pub(crate) fn lost(&self, period: Option<Duration>) {
        let grace = (period.unwrap_or(DEFAULT_PERIOD) * GRACE_PERIODS).max(self.0.least_grace);
        let cut_off_at = Instant::now() + grace;
        self.0.state.send_if_modified(|state| {
            let news = !matches!(state, State::Lost { .. });
            if news {
                *state = State::Lost { cut_off_at };
            }
            news
        });
    }

    /// Returns when no manager could be reached for so long that this node is on its own. May be dropped any time.
    pub(crate) async fn cut_off(&self) {
        let mut reader = self.0.state.subscribe();
        loop {
            let state = *reader.borrow_and_update();
            let changed = match state {
                State::Lost { cut_off_at } => tokio::select! {
                    () = tokio::time::sleep_until(cut_off_at) => return,
                    changed = reader.changed() => changed,
                },
                State::Unwatched | State::Connected => reader.changed().await,
            };
            if changed.is_err() {
                std::future::pending::<()>().await; // never: we hold the sender
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_node_is_cut_off_only_after_a_grace_and_not_while_nobody_looks() {
        let reach = Reach::with_least_grace(MOMENT);
        let is_cut_off = |wait| {
            let reach = reach.clone();
            async move { tokio::time::timeout(wait, reach.cut_off()).await.is_ok() }
        };
        assert!(!is_cut_off(2 * MOMENT).await, "nobody looks for managers");
        reach.connected();
        assert!(!is_cut_off(2 * MOMENT).await);
        reach.lost(Some(Duration::from_secs(3_600)));
        assert!(!is_cut_off(2 * MOMENT).await, "two periods have to pass");
        reach.connected();
        reach.lost(Some(MOMENT / 2));
        reach.lost(Some(Duration::from_secs(3_600)));
        assert!(is_cut_off(Duration::from_secs(60)).await, "counted from the first loss");
        reach.connected();
        assert!(!is_cut_off(2 * MOMENT).await);
    }
}
