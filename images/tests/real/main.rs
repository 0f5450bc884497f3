//! Images against the real things: a containerd of our own, Debian's docker-registry, skopeo, and the kernel's overlayfs.
//!
//! Each test has its own daemons in a temporary directory and leaves nothing behind, also when it fails.

mod archives; // archives that nobody would write in earnest
#[cfg(feature = "failpoints")]
mod crash; // killed at every fail-point
mod harness; // daemons
mod load;
mod out;
mod pull;
mod refuse;
mod speed;
mod survive;
mod wire; // a scripted registry for what real ones rarely do
