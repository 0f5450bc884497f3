//! Amounts of CPU, memory and named things that nodes have and tasks reserve.

use serde::{Deserialize, Serialize};

/// Something a node has and a task may reserve besides CPU and memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GenericResource {
    /// One individual of a kind, such as `gpu` `UUID1`.
    Named { kind: String, value: String },
    /// A count of a kind.
    Discrete { kind: String, value: i64 },
}

/// An amount: of a node (what it has) or of a task (what it reserves or may use at most).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Billionths of a CPU; 0 = not given.
    pub nano_cpus: i64,
    /// Bytes; 0 = not given.
    pub memory_bytes: i64,
    pub generic: Vec<GenericResource>,
}

/// What a task needs kept free for it and what it may use at most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceRequirements {
    pub limits: Resources,
    pub reservations: Resources,
    /// Swap above the memory limit, bytes; -1 = unlimited; `None` = the runtime's default.
    pub swap_bytes: Option<i64>,
    /// 0..=100; `None` or -1 = the kernel's default.
    pub memory_swappiness: Option<i64>,
}

/// Operating system and CPU; an empty text means any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// As `uname -m` says (`x86_64`) or as images say (`amd64`).
    pub architecture: String,
    pub os: String,
}
