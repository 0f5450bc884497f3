//! End-to-end tests live in `tests/`: each is a script against a [`skep_kit::Lab`](../skep_kit/struct.Lab.html) (one host) or, in
//! `e2e_cluster_*.rs`, a [`skep_kit::Cluster`](../skep_kit/struct.Cluster.html) (many). This library is empty.
