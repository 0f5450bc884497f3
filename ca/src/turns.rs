//! Whose handshake is computed now.
//!
//! When thousands of nodes come at once and all are shaken hands with side by side, each takes as long as all of them, nobody is
//! done before its time is over, and everybody comes again. So only some have their turn and the others wait for it in the order
//! they came. Waiting costs no CPU.

use crate::manners::{Lane, Manners};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Turns at once. A turn is mostly waiting for one answer of the client: enough of them to keep several cores busy meanwhile.
const AT_ONCE: usize = 64;
/// Who needs longer goes on without holding up others: it waits for its client, or the machine is starved.
const LONGEST: Duration = Duration::from_millis(100);

/// The turns of one listener. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    places: Arc<Semaphore>,
    manners: Manners,
}

/// One handshake's place among them.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    turns: Turns,
    /// Where the client is, if it has an address.
    address: Option<IpAddr>,
    /// It waits for us, not for its client: for its turn, within it, or to be taken by the server.
    waits_for_us: Arc<AtomicBool>,
}

impl Turns {
    pub(crate) fn new(manners: Manners) -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), manners }
    }

    pub(crate) fn place(&self, address: Option<IpAddr>) -> Turn {
        Turn { turns: self.clone(), address, waits_for_us: Arc::default() }
    }
}

impl Turn {
    pub(crate) fn manners(&self) -> &Manners {
        &self.turns.manners
    }

    pub(crate) fn lane(&self, shows_certificate: bool) -> Lane<'_> {
        self.turns.manners.lane(self.address, shows_certificate)
    }

    /// Does `work` when its turn has come.
    pub(crate) async fn take<T>(&self, work: impl Future<Output = T>) -> T {
        self.waits_for_us(true);
        let place = self.turns.places.acquire().await;
        let mut work = pin!(work);
        if let Ok(done) = tokio::time::timeout(LONGEST, work.as_mut()).await {
            return done;
        }
        drop(place);
        self.waits_for_us(false);
        work.await
    }

    pub(crate) fn waits_for_us(&self, does: bool) {
        self.waits_for_us.store(does, Ordering::Release);
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.waits_for_us.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::task::JoinSet;

    #[tokio::test(start_paused = true)]
    async fn so_many_have_their_turn_at_once_and_all_in_the_end() {
        let (turns, busy, most) = (Turns::new(Manners::default()), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = JoinSet::new();
        for _ in 0..10 * AT_ONCE {
            let (turn, busy, most) = (turns.place(None), busy.clone(), most.clone());
            all.spawn(async move {
                let work = async {
                    most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(LONGEST / 2).await;
                    busy.fetch_sub(1, Ordering::SeqCst);
                };
                turn.take(work).await;
            });
        }
        assert_eq!(all.join_all().await.len(), 10 * AT_ONCE);
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_dallies_loses_its_turn_and_goes_on() {
        let turns = Turns::new(Manners::default());
        let mut dallying = JoinSet::new();
        for _ in 0..AT_ONCE {
            let turn = turns.place(None);
            dallying.spawn(async move {
                turn.take(tokio::time::sleep(100 * LONGEST)).await;
            });
        }
        tokio::task::yield_now().await;
        let turn = turns.place(None);
        assert!(turn.take(async { turn.is_ours() }).await);
        assert!(!dallying.is_empty() && dallying.try_join_next().is_none());
        assert_eq!(dallying.join_all().await.len(), AT_ONCE);
    }
}
