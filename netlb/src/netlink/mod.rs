//! Talking netlink: what goes over the wire, one socket, and the routing family on top.
//!
//! Every call here is a system call or two and blocks for micro- to milliseconds; all of it runs on the owner's thread.
//! A netlink socket stays in the network namespace it was opened in, whoever uses it later.
//!
//! Routing messages are those of `netlink-packet-route`, in part built with `rtnetlink`; those crates are named nowhere
//! else. nf_tables and conntrack have no such crate and are written with [`wire`].

pub(crate) mod generic; // families of messages with numbers of their own
mod hop; // objects for next hops
mod lookup; // which way a packet takes, and how large it may be
mod message; // changes and questions as messages of the routing family
pub(crate) mod route; // sending them: links, addresses, routes, neighbours, next hops, rules
mod route_read; // the same, read back
pub(crate) mod socket; // one socket, requests and their acknowledgements
pub(crate) mod wire; // headers and attributes as bytes

pub(crate) use message::VethEnd;
