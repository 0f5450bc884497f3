//! Process 1 of a container: starts one command, passes on to it every signal that can be caught, reaps every child (also
//! those that lost their parent), and ends with the command's status.
//!
//! A process 1 has two duties that most programs do not know of. The kernel gives it all orphans of its container, which
//! stay zombies until it waits for them. And signals whose handling it did not choose have no effect on it: a shell as
//! process 1 does not end at SIGTERM. With this program in front the command has neither duty.
//!
//! ```text
//!   kill, runc kill ──signal──► skep-init (1) ──same signal──► command
//!                                  ▲ SIGCHLD                     │ children
//!                                  └──────── orphans ◄───────────┘
//! ```
//!
//! The command is the leader of a process group of its own and, on a terminal, of the group in the foreground: what is typed
//! reaches it once, from the kernel. Used as `skep-init -- COMMAND [ARG...]`, the form of Docker's `/sbin/docker-init`. The
//! exit status is the command's; 128 + the signal that killed it; 127 if there is no such command; 126 if it cannot be
//! executed; 125 if this program itself failed; 2 if it was called wrongly.
//!
//! One thread, no handlers: all signals are blocked and read from a descriptor.

mod command; // what to start, from the arguments
mod supervise; // start, pass on, reap
mod sys; // calls that have no safe form

pub use command::{Command, USAGE, UsageError};
pub use supervise::{InitError, supervise};
