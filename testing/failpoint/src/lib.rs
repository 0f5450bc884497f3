//! Named places where a test may kill the process.
//!
//! `failpoint!("agent.prepare.snapshot")` expands to nothing unless the feature
//! `enabled` is on. With it, a process started with `SKEP_FAILPOINT=agent.prepare.snapshot`
//! kills itself with SIGKILL when it comes by (the `n`th time with `…=name:n`), as a power cut or `kill -9` would:
//! no destructor runs, nothing is flushed. Each first visit of a point is appended to the file named by
//! `SKEP_FAILPOINT_TRACE`, so that a test can prove that the point lies on the path it drove.

#[cfg(feature = "enabled")]
mod enabled;
#[cfg(feature = "enabled")]
pub use enabled::hit;

/// Marks a point at which a crash must leave nothing behind that the next start does not mend.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {{
        #[cfg(feature = "failpoints")]
        $crate::hit($name);
    }};
}
