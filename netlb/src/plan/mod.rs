//! What follows from what is wanted: pure functions from data to data.
//!
//! [`layout`] says what each namespace should hold, [`difference`] what to change there, [`ports`] and [`vips`]
//! which map elements of nf_tables come and go. Nothing here touches the kernel.

pub(crate) mod balancer; // services of IPVS
pub(crate) mod change; // the difference of two states
pub(crate) mod layout; // a namespace's links, addresses, routes as they should be
pub(crate) mod namespace; // the words for them
pub(crate) mod overlay; // what joins a sandbox to those of other nodes
pub(crate) mod share; // which client gets which task
mod slots; // numbered backends behind a key, changed as little as possible
pub(crate) mod tables; // the nf_tables of the host and of a sandbox

pub(crate) use change::{Change, Unwanted, difference};
pub(crate) use namespace::{Forwarding, Link, Neighbour, NextHop, Route, RouteKind, Rule, State, Vxlan, Which};
