//! The DNS server of each task: what programs reach at 127.0.0.11, port 53.
//!
//! [`Names`] is what the cluster says about its networks, pushed by the caller; [`answer`] makes a question's bytes into an
//! answer's, from the names that the asker may see (pure, as are most modules here). [`Dns`] has a server per task: sockets that
//! were opened inside the task's network namespace and stay there, port 53 led to them without taking it from the task, and
//! resolvers asked for foreign names. Such a question holds up no other: those are asked in tasks of their own, a bounded number.
//!
//! A server has two tasks (UDP, TCP), each with a `JoinSet` for connections and foreign questions; [`Dns::stop`] waits for them.
//! Threads named `skep-dns` enter a namespace, open a socket and end.
//! `netlb/docs/dns.md` has the table of names and the reasons.

mod answer; // pure: from a question to an answer
mod batch; // datagrams, many to a system call
mod bucket; // pure: how often a container may ask
mod cache; // pure: answers from outside
mod counters; // what was done
mod error; // what can go wrong
mod foreign; // pure: questions for others, their answers checked
mod forward; // asks resolvers
mod limits; // of what is done for a container
mod names; // what the caller says
mod owner; // servers by task
mod query; // pure: reading a question
mod redirect; // port 53
mod response; // pure: writing an answer
mod reverse; // pure: names of addresses
mod serve; // a task's server, datagrams
mod shuffle; // pure: random order
mod socket; // inside the namespace
mod stream; // connections
mod table; // pure: names of a network
mod upstream; // pure: which resolver first

pub use answer::{Answer, answer};
pub use counters::DnsCounters;
pub use error::DnsError;
pub use foreign::Foreign;
pub use limits::DnsLimits;
pub use names::{Asker, NamedPort, Names, Reach, Readiness, ServiceNames, TaskNames};
pub use owner::{Asking, Dns};
pub use query::Transport;
pub use table::NetworkNames;
pub use upstream::{AskFrom, Resolver, resolvers_in};

use std::net::Ipv4Addr;

/// Leads port 53 nowhere any more in the namespace of the calling thread, which somebody else goes on with.
pub(crate) fn leave() -> std::io::Result<()> {
    redirect::remove()
}

/// What goes into a task's `resolv.conf`; people write it in configuration files, so it is the same as everywhere.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// RFC 1035 §4.2.
const PORT: u16 = 53;
