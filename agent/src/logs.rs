//! The output of containers: one process per node that writes it to files, and readers of these files.
//!
//! The writer ([`run_log_writer`]) outlives skepd: it holds the read ends of all fifos, so that no container ever blocks
//! or dies because skepd was killed. The agent starts it when it is not there and tells it which fifos to read
//! ([`LogWriter`]). Files are in Docker's json-file form and rotated.

mod client; // the agent's side of the writer
mod line; // Docker's json-file lines, cutting output into lines
mod options; // what a log driver's options mean
mod protocol; // what the two say to each other
mod reader; // tail, since, follow over rotated files
mod rotate; // the files
mod tap; // output as it comes
mod writer; // the process

pub use client::{LogWriter, LogWriterCommand};
pub use line::{LogLine, LogStream};
pub use options::LogOptions;
pub use protocol::Open;
pub use reader::{LogQuery, Tail, read_logs};
pub use tap::Tap;
pub use writer::{LogWriterError, run_log_writer};
