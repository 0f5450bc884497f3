//! The store as openraft sees it: types, log, state machine, network.

pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod types;
