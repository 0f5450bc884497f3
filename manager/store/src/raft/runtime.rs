//! What openraft runs on: tokio, with a tick that can rest.
//!
//! openraft's tick wakes every 1.5 heartbeats, for ever, also when ticks are switched off: on an idle machine with one
//! manager that was most of what the whole daemon did. [`Rest`] stops the clock itself. It reaches the tick by a
//! task-local, for a runtime of openraft has no place of its own for state; the tick is the only one to sleep until a
//! moment (`core/tick.rs` of 0.9.25), everything else sleeps for a time.

use openraft::AsyncRuntime;
use openraft::impls::TokioRuntime;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

tokio::task_local! {
    static REST: Rest;
}

/// Says whether the clock of one raft rests. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Rest(Arc<watch::Sender<bool>>);

impl Rest {
    /// The clock runs.
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// What is spawned in `future` by way of [`Runtime`] goes by this clock.
    pub(crate) async fn govern<F: Future>(&self, future: F) -> F::Output {
        REST.scope(self.clone(), future).await
    }

    /// A clock that goes on after a rest ticks at once.
    pub(crate) fn set(&self, resting: bool) {
        self.0.send_if_modified(|now| std::mem::replace(now, resting) != resting);
    }
}

/// Tokio, with the clock of [`Rest`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: Send + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type OneshotSender<T: Send> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: Send> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        match REST.try_with(Rest::clone) {
            Ok(rest) => TokioRuntime::spawn(REST.scope(rest, future)),
            Err(_) => TokioRuntime::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Box::pin(TokioRuntime::sleep(duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let Ok(mut rest) = REST.try_with(|rest| rest.0.subscribe()) else {
            return Box::pin(TokioRuntime::sleep_until(deadline));
        };
        Box::pin(async move {
            if *rest.borrow_and_update() {
                // An end of the sender is an end of the store: the tick is told to stop in another way.
                let _ = rest.wait_for(|resting| !resting).await;
            } else {
                TokioRuntime::sleep_until(deadline).await;
            }
        })
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn oneshot<T: Send>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_resting_clock_does_not_wake_anybody_and_goes_on_at_once() {
        let rest = Rest::new();
        let began = Instant::now();
        rest.govern(async { Runtime::sleep_until(began + Duration::from_millis(150)).await }).await;
        assert_eq!(began.elapsed(), Duration::from_millis(150));

        rest.set(true);
        let sleep = || Runtime::spawn(async { Runtime::sleep_until(Instant::now()).await });
        let tick = rest.govern(std::future::poll_fn(|_| std::task::Poll::Ready(sleep()))).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!tick.is_finished());
        let woken = Instant::now();
        rest.set(false);
        tick.await.unwrap();
        assert_eq!(woken.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rest_it_is_tokio() {
        let began = Instant::now();
        Runtime::spawn(Runtime::sleep_until(began + Duration::from_secs(1))).await.unwrap();
        Runtime::sleep(Duration::from_secs(1)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(2));
    }
}
