//! What can go wrong with encryption between nodes.

use std::io;
use std::path::PathBuf;

/// Why packets between nodes cannot be encrypted. As long as they cannot, they do not leave.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    #[error("could not {step} the key {path}")]
    Keys { path: PathBuf, step: &'static str, source: io::Error },
    #[error("others may read the private key {path} (mode {mode:o}); remove it, and the next rotation makes another one")]
    KeyIsOpen { path: PathBuf, mode: u32 },
    #[error("the file {path} holds no WireGuard key; remove it, and another one is made")]
    BadKey { path: PathBuf },
    #[error(
        "this node cannot encrypt: its kernel has no WireGuard ({kernel}), and /dev/net/tun, with which it would do without, \
         cannot be used ({tun}); load the module wireguard or tun"
    )]
    Unable { kernel: io::Error, tun: io::Error },
    #[error("this node's kernel has no WireGuard; load the module wireguard, or let the driver be chosen")]
    NoKernel { source: io::Error },
    #[error("/dev/net/tun cannot be used; load the module tun")]
    NoTun { source: io::Error },
    #[error("could not {step} the WireGuard device {link}")]
    Device { link: String, step: &'static str, source: io::Error },
    #[error("WireGuard device {link}: could not bind UDP port {port}; if other software of this host has it, give the cluster another one")]
    Port { link: String, port: u16, source: io::Error },
    #[error("the userspace WireGuard of {link} ended: {reason}")]
    Ended { link: String, reason: String },
    #[error("encryption cannot be as asked: {0}")]
    Bad(String),
}
