//! Runs calls where they arrive.

use hyper::rt::Executor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Lets a call run in its connection's task up to where it has to wait; only then it becomes a task. A heartbeat never waits:
/// it is read, answered and written in one turn, and no other thread is woken for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct AtOnce;

impl<F> Executor<F> for AtOnce
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let mut call = Box::pin(call);
        match first_turn(call.as_mut()) {
            Some(Poll::Ready(())) => {}
            // It is asked again at once, and leaves word with whoever it waits for.
            Some(Poll::Pending) => drop(tokio::spawn(call)),
            None => tracing::error!("a call panicked; its connection goes on"),
        }
    }
}

/// `None`: it panicked, which must not end the other calls of its connection. The panic hook has told where.
fn first_turn<F: Future<Output = ()>>(call: Pin<&mut F>) -> Option<Poll<()>> {
    catch_unwind(AssertUnwindSafe(|| call.poll(&mut Context::from_waker(Waker::noop())))).ok()
}

/// Waits for one turn, so that what follows runs in a task of its own.
pub(super) async fn next_turn() {
    let mut waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_need_not_wait_is_done_when_execute_returns() {
        let done = Arc::new(AtomicUsize::new(0));
        let counted = done.clone();
        AtOnce.execute(async move {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_waits_goes_on_as_a_task() {
        let (start, started) = oneshot::channel::<()>();
        let (finish, finished) = oneshot::channel();
        AtOnce.execute(async move {
            started.await.unwrap();
            next_turn().await;
            finish.send(()).unwrap();
        });
        start.send(()).unwrap();
        finished.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_stays_with_its_call() {
        AtOnce.execute(async { panic!("meant") });
        let (finish, finished) = oneshot::channel();
        AtOnce.execute(async move { finish.send(()).unwrap() });
        finished.await.unwrap();
    }
}
