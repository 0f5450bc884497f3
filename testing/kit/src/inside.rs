use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;

/// Runs on a thread of its own in a network namespace.
///
/// # Errors
/// There is no such namespace, or what the work ends with.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(namespace).with_context(|| namespace.display().to_string())?;
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().expect("no panic in a thread")
    })
}
