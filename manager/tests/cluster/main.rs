//! A real manager (store on disk, TLS, gRPC over loopback) and agents that play their tasks.

mod a_service_lives;
mod abuse;
mod attachments;
mod burst;
#[path = "../common/cfssl.rs"]
mod cfssl;
mod control_api;
mod every_method;
mod explanations;
mod floods;
mod fuzz;
mod joining;
mod many_at_once;
mod networks;
mod nodes_and_logs;
mod root_rotation;
mod sessions;
mod support;
mod tunnels;
mod who_may_call;
mod wire;
