//! Whom we are compared with.

mod ctr; // containerd's own client, in a loop
mod dockerd; // Debian's dockerd 20.10 in swarm mode
mod etcd; // Debian's etcd 3.4
mod runc; // the floor: the runtime alone

pub use ctr::{Containerd, Ctr, ctr};
pub use dockerd::{Dockerd, Network, Peer};
pub use etcd::{Etcd, EtcdClient, program as etcd_program};
pub use runc::Runc;

use anyhow::Result;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `work` for `0..count`, so many at a time; stops at the first error.
fn at_a_time(parallelism: usize, count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let worker = || {
            loop {
                crate::interrupt::check()?;
                match next.fetch_add(1, Ordering::Relaxed) {
                    index if index < count => work(index)?,
                    _ => return Ok(()),
                }
            }
        };
        let workers: Vec<_> = (0..parallelism.min(count)).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
