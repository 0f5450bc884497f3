//! Makes sure that this manager still leads before it answers a question. Questions that wait share one round to the others.

use skep_store::{Store, StoreError};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// Rounds are counted when they begin.
#[derive(Default)]
pub(crate) struct Barrier {
    begun: AtomicU64,
    /// The last round that a majority answered.
    passed: Mutex<u64>,
}

impl Barrier {
    /// Returns when a round that began after this call has come back, and the view holds what it found.
    pub(crate) async fn pass(&self, store: &Store) -> Result<(), StoreError> {
        self.pass_with(|| store.read_barrier()).await
    }

    async fn pass_with<F: Future<Output = Result<(), StoreError>>>(&self, round: impl Fn() -> F) -> Result<(), StoreError> {
        // A round under way may have asked the others before what this question must see was acknowledged.
        let before = self.begun.load(Ordering::SeqCst);
        let mut passed = self.passed.lock().await;
        if *passed > before {
            return Ok(());
        }
        let this = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        round().await?;
        *passed = this;
        Ok(())
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
}
