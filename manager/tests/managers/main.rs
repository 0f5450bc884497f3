//! Real managers on loopback: stores on disk, mutual TLS, gRPC. How they become a group, find their leader, and whom they refuse.

mod attacks;
mod forwarding;
mod joining;
mod messages;
mod networks;
mod roles;
mod sessions;
mod support;
mod tunnels;
