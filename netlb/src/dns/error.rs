//! Why a task has no DNS.

use std::io;
use std::path::PathBuf;

/// What can go wrong when a task's DNS is set up; questions that cannot be answered are answered so.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("could not enter the network namespace {path}")]
    Namespace { path: PathBuf, source: io::Error },
    #[error("could not listen on {address} in {path}", address = super::ADDRESS)]
    Listen { path: PathBuf, source: io::Error },
    #[error("could not redirect port 53 of {address} in {path}; does the kernel have nf_tables?", address = super::ADDRESS)]
    Redirect { path: PathBuf, source: io::Error },
}
