//! One list of what any load balancer must do, on two hosts and with an outside client, dual stack. See `support/hosts.rs`.
//! Where the kernel has no IPVS, that half of the list is left to `make vm`.

#[path = "../support/hosts.rs"]
mod hosts;
mod ports; // published ports
mod scene; // hosts, tasks, and what leads to them
#[path = "../support/mod.rs"]
mod support;
mod vips; // virtual addresses

use skep_netlb::LbDriver;

/// The list, once for each driver.
macro_rules! conformance {
    ($($part:ident::$check:ident),* $(,)?) => {
        mod nftables {
            $(#[test]
            fn $check() {
                super::scene::run(super::LbDriver::Nftables, stringify!($check), super::$part::$check);
            })*
        }
        mod ipvs {
            $(#[test]
            fn $check() {
                super::scene::run(super::LbDriver::Ipvs, stringify!($check), super::$part::$check);
            })*
        }
    };
}

conformance! {
    vips::a_connection_goes_to_any_backend_whatever_its_port_and_protocol,
    vips::a_backend_that_left_gets_nothing_new_and_keeps_what_it_has,
    vips::a_backend_that_is_gone_resets_what_it_had,
    vips::a_task_without_a_way_for_a_moment_keeps_its_connections,
    vips::a_virtual_address_without_backends_refuses,
    vips::a_virtual_address_that_is_removed_keeps_what_is_connected,
    vips::udp_flows_go_to_another_backend_when_theirs_goes,
    vips::a_task_that_reaches_itself_is_answered,
    vips::no_connection_fails_while_backends_come_and_go,
    vips::an_audit_mends_what_others_broke,
    vips::a_restart_keeps_connections,
    vips::another_driver_takes_over_at_a_restart,
    vips::nothing_is_left_of_what_is_removed,
    ports::every_host_answers_and_tasks_see_the_client,
    ports::a_backend_that_left_gets_nothing_new_of_a_port_and_keeps_what_it_has,
    ports::a_backend_that_is_gone_resets_what_it_had_of_a_port,
    ports::udp_flows_of_a_port_go_to_another_backend_when_theirs_goes,
    ports::a_port_that_is_published_no_more_refuses,
    ports::clients_that_may_not_come_are_refused,
    ports::a_client_keeps_its_task_by_whichever_host_it_comes,
    ports::a_port_answers_at_its_place_only,
}
