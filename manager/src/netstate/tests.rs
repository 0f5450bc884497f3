//! What happens in a cluster, and what its nodes are told of it.

mod history; // drawn
mod interest; // who is told what
mod keys; // of encrypted networks
mod leaving; // tasks that are to stop
mod reuse; // addresses that are given again
mod world; // a store, and nodes that follow
