//! A real manager (store on disk, TLS, gRPC over loopback) and agents that play their tasks.

mod a_service_lives;
mod burst;
mod control_api;
mod many_at_once;
mod nodes_and_logs;
mod support;
mod who_may_call;
