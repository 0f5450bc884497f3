//! End-to-end tests live in `tests/`: each is a script against a [`skep_kit::Lab`] (one host) or, in `e2e_cluster_*.rs` and those of
//! networks, a [`skep_kit::Cluster`] (many). Here is what several of them share.

pub mod networks; // clients and tasks that ask each other
