//! Killed at every fail-point, started again: everything works, and nothing is left behind at the end.
//! `cargo test -p skep-netlb --features failpoints --test crash`
#![cfg(feature = "failpoints")]

#[path = "support/hosts.rs"]
mod hosts;
mod support;

use skep_netlb::*;
use support::*;

const POINTS: &[&str] = &[
    "netlb.netns.file",
    "netlb.netns.mounted",
    "netlb.netns.unmounted",
    "netlb.sandbox.created",
    "netlb.sandbox.linked",
    "netlb.sandbox.addressed",
    "netlb.sandbox.tables",
    "netlb.task.linked",
    "netlb.task.addressed",
    "netlb.task.removed",
    "netlb.overlay.linked",
    "netlb.overlay.told",
    "netlb.overlay.moved",
    "netlb.overlay.left",
    "netlb.sandbox.apart",
    "netlb.host.routed",
    "netlb.apply.joined",
    "netlb.apply.network",
    "netlb.apply.routed",
    "netlb.apply.ports",
    "netlb.apply.flows",
    "netlb.audit.files",
    "netlb.audit.sandbox",
    "netlb.audit.host",
    "netlb.everything.apart",
    "netlb.everything.namespace",
    "netlb.everything.links",
    "netlb.everything.tables",
];

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

/// Not a test: what is killed.
#[test]
fn scenario() {
    support::scenario(async {
        let netlb = World::netlb();
        let (ingress, plain) = (network(1, true), network(2, false));
        let mut tasks: Vec<_> = (1..=4).map(|n| task(n, vec![attach(&ingress, 10 + n)])).collect();
        let lone = task(5, vec![attach(&plain, 15)]);
        for task in tasks.iter().chain([&lone]) {
            netlb.ensure_task(task.clone()).await.unwrap();
        }
        let apply = async |networks: &[Network], tasks: &[TaskNetwork], peers: &[u8]| {
            let mut want = wanted(networks, tasks, vec![ingress_port(Protocol::Tcp, 8080, tasks)]);
            want.networks.iter_mut().for_each(|network| span(network, peers));
            netlb.set_wanted(want);
            netlb.applied().await.unwrap();
        };
        apply(&[ingress.clone(), plain.clone()], &tasks, &[2, 3]).await;
        netlb.audit().await.unwrap();
        apply(&[ingress.clone(), plain.clone()], &tasks[..3], &[2, 3]).await;
        apply(&[ingress.clone(), plain], &tasks, &[2]).await;
        let gone = NetworkDelta::Members { endpoints: [(skep_types::TaskId::for_test(102), None)].into(), vips: Default::default() };
        netlb.change(Delta { networks: [(ingress.id.clone(), gone)].into(), ..Delta::default() });
        netlb.applied().await.unwrap();
        let leaving = tasks.pop().unwrap();
        apply(&[ingress], &tasks, &[]).await;
        netlb.remove_task(leaving.task).await.unwrap();
        netlb.remove_task(lone.task).await.unwrap();
        netlb.remove_everything().await.unwrap();
    });
}

/// Puts the network on other nodes, which need not be there, with a task on each.
fn span(network: &mut WantedNetwork, peers: &[u8]) {
    let node = |index: u8| Peer {
        node_index: u32::from(index),
        underlay: format!("198.18.0.{index}").parse().unwrap(),
        mac: Mac([2, 0xab, 0, 0, 0, index]),
    };
    network.overlay = Some(Overlay { this: node(1), port: 4789, peers: peers.iter().copied().map(node).collect() });
    for index in peers {
        let addresses = attach(&network.network, 200 + index).addresses.iter().map(|address| address.addr()).collect();
        let location = Location::Remote { node_index: u32::from(*index) };
        network.endpoints.push(Endpoint { task: skep_types::TaskId::for_test(100 + u64::from(*index)), addresses, location });
    }
}

#[test]
fn after_a_kill_at_any_point_the_next_start_mends_everything() {
    on_own_host("after_a_kill_at_any_point_the_next_start_mends_everything", async |mut world| {
        if !hosts::kernel_has_overlays("after_a_kill_at_any_point_the_next_start_mends_everything") {
            return;
        }
        let line = "ip -br link; nft list ruleset; ip route show table all | { grep -v 'proto kernel' || true; }";
        for point in POINTS {
            for visit in [1, 2] {
                let before = look(line);
                if !killed_at(point, visit) {
                    continue; // is visited once only
                }
                let netlb = World::netlb();
                let (ingress, tasks) = three_tasks(&mut world, &netlb).await;
                let mut want = wanted(&[ingress], &tasks, vec![ingress_port(Protocol::Tcp, 8080, &tasks)]);
                span(&mut want.networks[0], &[3, 4]);
                netlb.set_wanted(want);
                netlb.applied().await.unwrap_or_else(|error| panic!("{point}: {error}"));
                netlb.audit().await.unwrap_or_else(|error| panic!("{point}: {error:?}"));
                assert_eq!(netlb.audit().await.unwrap(), Audit::default(), "after {point}");
                all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
                all_three_answer(CLIENT6, || within(&World::client(), || tcp(HOST6, 8080)));
                assert_eq!(sh("ls /run/skep/netns | wc -l").trim(), "4", "three tasks and a sandbox after {point}");
                let hops = sh("nsenter --net=$(ls -d /run/skep/netns/sbx-*) ip nexthop | grep -o 'fe80::.*vx0'");
                assert_eq!(hops, "fe80::3 dev vx0\nfe80::4 dev vx0\n", "after {point}");
                world.stop_responders();
                netlb.remove_everything().await.unwrap();
                assert_eq!(sh("ls /run/skep/netns; grep -c skep/netns /proc/self/mountinfo || true"), "0\n", "{point}");
                eventually(&format!("after {point} the host is as before:\n{before}"), || look(line) == before);
            }
        }
    });
}
