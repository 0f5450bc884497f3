//! Makes sure that this manager still leads before it answers a question. Questions that wait share one round to the others.

use crate::drive::chain;
use skep_store::{Store, StoreError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

/// A majority that is there answers in a few milliseconds, or when its disks are done.
const ROUND: Duration = Duration::from_secs(3);

/// This manager may not lead any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this manager cannot make sure that it still leads: {0}")]
pub(crate) struct Unconfirmed(String);

/// What the last round came to; the numbers are those of rounds as they began.
struct Last {
    number: u64,
    outcome: Result<(), Unconfirmed>,
}

pub(crate) struct Barrier {
    begun: AtomicU64,
    last: Mutex<Last>,
}

impl Default for Barrier {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), last: Mutex::new(Last { number: 0, outcome: Ok(()) }) }
    }
}

impl Barrier {
    /// Returns when a round that began after this call has come back, and the view holds what it found.
    pub(crate) async fn pass(&self, store: &Store) -> Result<(), Unconfirmed> {
        self.pass_with(|| store.read_barrier()).await
    }

    async fn pass_with<F: Future<Output = Result<(), StoreError>>>(&self, round: impl Fn() -> F) -> Result<(), Unconfirmed> {
        // A round under way may have asked the others before what this question must see was acknowledged.
        let before = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.number > before {
            return last.outcome.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let outcome = match tokio::time::timeout(ROUND, round()).await {
            Ok(outcome) => outcome.map_err(|error| Unconfirmed(chain(&error))),
            Err(_) => Err(Unconfirmed(format!("no majority answered within {ROUND:?}"))),
        };
        *last = Last { number, outcome: outcome.clone() };
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn many_questions_share_few_rounds() {
        let (barrier, rounds) = (Arc::new(Barrier::default()), Arc::new(AtomicUsize::new(0)));
        let mut questions = JoinSet::new();
        for _ in 0..100 {
            let (barrier, rounds) = (barrier.clone(), rounds.clone());
            questions.spawn(async move {
                let round = || async {
                    rounds.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    Ok(())
                };
                barrier.pass_with(round).await.unwrap();
            });
        }
        while questions.join_next().await.is_some() {}
        assert!((1..=3).contains(&rounds.load(Ordering::SeqCst)), "{rounds:?}");
        barrier.pass_with(|| async { Ok(()) }).await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_a_round_that_fails_does_not_wait_for_another() {
        let (barrier, rounds) = (Barrier::default(), AtomicUsize::new(0));
        let round = || async {
            rounds.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Err(StoreError::Stopped)
        };
        // The first has no company; the others share the next.
        let outcomes = futures_util::future::join_all((0..50).map(|_| barrier.pass_with(round))).await;
        assert!(outcomes.iter().all(Result::is_err));
        assert!(rounds.load(Ordering::SeqCst) <= 3, "{rounds:?}");
    }
}
