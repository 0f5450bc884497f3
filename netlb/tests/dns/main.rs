//! The DNS of tasks against the real kernel. Each test is on a host of its own, see `support`.

#[path = "../support/mod.rs"]
mod support;

mod foreign; // names that others have
mod limits; // what one container can take
mod serving; // sockets, port 53, start and end
mod tools; // questions, tasks, resolvers

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}
