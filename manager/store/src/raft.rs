//! The store as openraft sees it: types, log, state machine, network. And what we add to it: elections, held lines.

pub(crate) mod lines;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod polls;
pub(crate) mod runtime;
pub(crate) mod types;
