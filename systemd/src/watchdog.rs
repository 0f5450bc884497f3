//! Pings while alive.

use crate::notify::Notifier;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How long systemd waits for a ping before it restarts the daemon; `None` if the unit sets no `WatchdogSec=`, or it is meant for
/// another process.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|period| !period.is_zero())
}

/// Pings twice per period while `is_alive` says yes, until `stop`. Returns at once if there is no period.
///
/// `is_alive` is asked on the runtime it watches over: it must not block, and a runtime that stands still does not ping either.
/// A daemon that is not alive goes unpinged; systemd then restarts it, and says why in its log.
pub async fn watchdog(notifier: Notifier, period: Option<Duration>, mut is_alive: impl FnMut() -> bool + Send, stop: CancellationToken) {
    let Some(period) = period else { return };
    if !notifier.is_heard() {
        return;
    }
    // `sd_watchdog_enabled(3)` recommends half of the time.
    let mut ticks = interval((period / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_alive = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let alive = is_alive();
        if alive {
            notifier.alive();
        } else if was_alive {
            tracing::error!(?period, "not alive; the watchdog will restart the daemon unless it recovers");
        }
        was_alive = alive;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::tests::FakeManager;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    const PERIOD: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn pings_come_twice_per_period_and_only_while_alive() {
        let (manager, notifier) = FakeManager::start();
        let alive = Arc::new(AtomicBool::new(true));
        let asked = Arc::new(AtomicU32::new(0));
        let stop = CancellationToken::new();
        let probe = {
            let (alive, asked) = (alive.clone(), asked.clone());
            move || {
                asked.fetch_add(1, Ordering::SeqCst);
                alive.load(Ordering::SeqCst)
            }
        };
        let task = tokio::spawn(watchdog(notifier, Some(PERIOD), probe, stop.clone()));
        tokio::time::sleep(Duration::from_secs(95)).await; // at 0, 30, 60, 90 s
        for _ in 0..4 {
            assert_eq!(manager.hear(), "WATCHDOG=1\n");
        }
        assert!(manager.hears_nothing());

        alive.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(manager.hears_nothing());
        assert_eq!(asked.load(Ordering::SeqCst), 6);

        alive.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(manager.hear(), "WATCHDOG=1\n");
        stop.cancel();
        task.await.unwrap();
        assert!(manager.hears_nothing());
    }

    #[tokio::test]
    async fn without_a_period_or_a_service_manager_there_is_nothing_to_do() {
        let (_manager, notifier) = FakeManager::start();
        watchdog(notifier, None, || true, CancellationToken::new()).await;
        watchdog(Notifier::silent(), Some(PERIOD), || true, CancellationToken::new()).await;
    }
}
