//! A runtime for what agents want.

use std::io;
use std::num::NonZeroUsize;
use tokio::runtime::{Builder, Handle, Runtime};

/// Threads: handshakes and registrations of thousands of nodes keep several cores busy, and each costs memory for good.
const FEWEST: usize = 2;
const MOST: usize = 4;

/// A runtime of its own for connections of agents. When all of them come back at once, after a change of leader, its threads have a
/// long queue; those of the runtime that carries raft, the store and clients' calls have none, and the kernel lets those that waited
/// run first.
#[derive(Debug)]
pub struct Crowd(Option<Runtime>);

impl Crowd {
    /// # Errors
    /// If there are no threads to be had.
    pub fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(FEWEST, NonZeroUsize::get);
        let threads = cores.clamp(FEWEST, MOST);
        let runtime = Builder::new_multi_thread().worker_threads(threads).max_blocking_threads(4).thread_name("crowd").enable_all().build();
        Ok(Self(Some(runtime?)))
    }

    /// Where to spawn.
    ///
    /// # Panics
    /// Never: the runtime lives as long as this.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.as_ref().expect("taken by drop only").handle().clone()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Servers have ended before; nobody waits for what is left.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
