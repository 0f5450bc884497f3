//! A network of one's own: loopback only, so that thousands of connections meet no rules and no other program.
//! Or the network of a peer, to talk to it.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use std::path::Path;
use std::time::Duration;

/// What blocks at the end is not waited for longer than this.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Runs `work` on a runtime whose threads, and the programs they start, have a network namespace that ends with them.
///
/// # Errors
/// If there can be no such namespace; else those of `work`.
pub fn in_own_network<T, F>(work: impl FnOnce() -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    on_thread(work, || {
        unshare(CloneFlags::CLONE_NEWNET).context("no network namespace could be made")?;
        skep_kit::run("ip", &["link", "set", "lo", "up"])?.success()?;
        widen()
    })
}

/// The same in a namespace that is there.
///
/// # Errors
/// If it cannot be entered; else those of `work`.
pub fn in_network<T, F>(namespace: &Path, work: impl FnOnce() -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    on_thread(work, || {
        let file = std::fs::File::open(namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", namespace.display()))?;
        widen()
    })
}

/// Connections that ended keep their port for a minute. A thread sees the settings of its own namespace.
fn widen() -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535").context("the range of ports cannot be widened")
}

fn on_thread<T, F>(work: impl FnOnce() -> F + Send, enter: impl FnOnce() -> Result<()> + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter()?;
            // Threads are born in the namespaces of the thread that makes them.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let outcome = runtime.block_on(work());
            runtime.shutdown_timeout(SHUTDOWN);
            outcome
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
