//! From whoever says what is wanted to the owner: the latest counts, and what was not heard yet is said as one.

use crate::delta::Said;
use crate::handle::Generation;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

type Shared = Arc<Mutex<Said>>;

/// Says. Clones speak to the same listener.
#[derive(Debug, Clone)]
pub(crate) struct Speaker {
    said: Shared,
    latest: Arc<watch::Sender<Generation>>,
}

/// Hears, some time later.
#[derive(Debug)]
pub(crate) struct Listener {
    said: Shared,
    latest: watch::Receiver<Generation>,
}

pub(crate) fn channel() -> (Speaker, Listener) {
    let (sender, receiver) = watch::channel(Generation(0));
    let said = Shared::default();
    (Speaker { said: Arc::clone(&said), latest: Arc::new(sender) }, Listener { said, latest: receiver })
}

fn lock(said: &Shared) -> MutexGuard<'_, Said> {
    // What was said is data, whole at any moment.
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Speaker {
    /// Returns at once.
    pub(crate) fn say(&self, say: impl FnOnce(&mut Said)) -> Generation {
        let mut said = lock(&self.said);
        say(&mut said);
        let mut now = Generation(0);
        // Within the lock: who takes what is said has its number too.
        self.latest.send_modify(|latest| {
            latest.0 += 1;
            now = *latest;
        });
        now
    }

    pub(crate) fn latest(&self) -> Generation {
        *self.latest.borrow()
    }
}

impl Listener {
    /// Waits until something is said; `false`: nobody will say anything any more. May be dropped at any time.
    pub(crate) async fn heard(&mut self) -> bool {
        self.latest.changed().await.is_ok()
    }

    /// All that was said and not taken yet.
    pub(crate) fn take(&mut self) -> (Generation, Said) {
        let mut said = lock(&self.said);
        (*self.latest.borrow_and_update(), std::mem::take(&mut *said))
    }
}
