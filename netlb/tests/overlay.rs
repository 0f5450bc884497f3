//! Networks that span hosts, against the real kernel: who reaches whom, and whom they see. See `support/hosts.rs`.

#[path = "support/hosts.rs"]
mod hosts;
mod support;

use hosts::*;
use skep_netlb::*;
use std::net::{TcpListener, UdpSocket};
use support::*;

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

#[test]
fn tasks_reach_each_other_across_hosts() {
    overlay_test("tasks_reach_each_other_across_hosts", async |mut world| {
        let (hosts, mut cluster, tasks) = spread(&mut world, 2, network(2, false)).await;
        cluster.tell(&hosts).await;
        for (from, to, seen) in [(&tasks[0], 12, 11), (&tasks[1], 11, 12)] {
            let (to4, to6) = (format!("10.0.2.{to}"), format!("fd00:0:0:2::{to:x}"));
            let name = format!("T{}", to - 10);
            assert_eq!(within(from, || ask(&to4, 80)).unwrap(), format!("{name} saw 10.0.2.{seen}"));
            assert_eq!(within(from, || ask(&to6, 80)).unwrap(), format!("{name} saw fd00:0:0:2::{seen:x}"));
            assert_eq!(within(from, || ask_udp(&to4, 80)).unwrap(), format!("{name} saw 10.0.2.{seen}"));
            assert_eq!(within(from, || ask_udp(&to6, 80)).unwrap(), format!("{name} saw fd00:0:0:2::{seen:x}"));
        }
        // Neither this host nor, asked by it, the other one knows these: both say so.
        cluster.tasks.push((task(77, vec![attach(&cluster.networks[0], 77)]), 2));
        hosts[0].netlb.set_wanted(cluster.for_node(1));
        hosts[0].applied().await;
        for nobody in ["10.0.2.99", "10.0.2.77", "fd00:0:0:2::63", "fd00:0:0:2::4d"] {
            let error = within(&tasks[0], || ask(nobody, 80)).unwrap_err();
            assert!(error.contains("unreachable") || error.contains("No route"), "{nobody}: {error}");
        }
        // The host's own name for the network is not on the cable.
        assert!(!within(&World::client(), || answers_soon("10.0.2.11", 80)));
        for host in &hosts {
            assert!(!host.sh("ip -br link").contains("vx0"), "it is in the sandbox");
        }
        cluster.tasks.pop();
        cluster.tell(&hosts).await;
        all_are_as_wanted(&hosts).await;
    });
}

#[test]
fn the_way_between_hosts_may_be_ipv6() {
    overlay_test("the_way_between_hosts_may_be_ipv6", async |mut world| {
        let (hosts, mut cluster, tasks) = spread(&mut world, 2, network(2, false)).await;
        cluster.tell(&hosts).await;
        assert_eq!(within(&tasks[0], || ask("10.0.2.12", 80)).unwrap(), "T2 saw 10.0.2.11");
        // The addresses of hosts change: another device, the same tasks.
        cluster.underlay = Underlay::V6;
        cluster.tell(&hosts).await;
        for host in &hosts {
            host.sh("ip addr del 198.18.0.$(ip -br addr show eth0 | grep -o 198.18.0.. | tail -c2)/24 dev eth0");
        }
        assert_eq!(within(&tasks[0], || ask("10.0.2.12", 80)).unwrap(), "T2 saw 10.0.2.11");
        assert_eq!(within(&tasks[1], || ask("fd00:0:0:2::b", 80)).unwrap(), "T1 saw fd00:0:0:2::c");
        all_are_as_wanted(&hosts).await;
    });
}

/// Each flow has a source port of its own and no answer: a host that tracked them would have four entries for one of a client's.
#[test]
fn hosts_keep_no_account_of_packets_between_nodes() {
    overlay_test("hosts_keep_no_account_of_packets_between_nodes", async |mut world| {
        let (hosts, mut cluster, tasks) = spread(&mut world, 2, network(2, false)).await;
        let count = "udp dport 4789 ct state untracked counter; udp dport 4789 ct state != untracked counter;";
        for host in &hosts {
            host.sh(&format!(
                "nft 'table inet others {{ chain in {{ type filter hook input priority 0; {count} }}; chain out {{ type filter hook output priority 0; {count} }}; }}'"
            ));
        }
        let counted = |host: &Host, chain: &str| -> Vec<u64> {
            let text = host.sh(&format!("nft list chain inet others {chain}"));
            let after = |line: &str| line.split("packets ").nth(1)?.split(' ').next()?.parse().ok();
            text.lines().filter_map(after).collect()
        };
        for underlay in [Underlay::V4, Underlay::V6] {
            cluster.underlay = underlay;
            cluster.tell(&hosts).await;
            let before: Vec<_> = hosts.iter().map(|host| (counted(host, "in"), counted(host, "out"))).collect();
            for (from, to, seen) in [(&tasks[0], "10.0.2.12", "T2 saw 10.0.2.11"), (&tasks[1], "10.0.2.11", "T1 saw 10.0.2.12")] {
                assert_eq!(within(from, || ask(to, 80)).unwrap(), seen);
            }
            for (host, (came, left)) in hosts.iter().zip(before) {
                for (before, after) in [(came, counted(host, "in")), (left, counted(host, "out"))] {
                    assert!(after[0] >= before[0] + 6, "host {}: {before:?} {after:?}", host.index);
                    assert_eq!(after[1], before[1], "host {}: tracked all the same", host.index);
                }
            }
            all_are_as_wanted(&hosts).await;
        }
        // What is no packet of ours is tracked as ever, also on that port.
        let state = "nft 'add chain inet others raw { type filter hook output priority 0; }; add rule inet others raw udp dport 4789 ip daddr 127.0.0.1 ct state new counter'";
        hosts[0].sh(state);
        hosts[0].sh("bash -c 'echo x > /dev/udp/127.0.0.1/4789'");
        assert_eq!(counted(&hosts[0], "raw"), [1]);
        // The network goes, and with it the host's knowledge of where its packets come.
        let ends = |host: &Host| -> u32 {
            let count = "nft list ruleset | tr -d '\\n\\t' | grep -o 'set overlays [^}]*}' | grep -c elements || true";
            host.sh(count).trim().parse().unwrap()
        };
        assert_eq!(ends(&hosts[0]), 1, "of the family in use");
        for host in &hosts {
            host.netlb.set_wanted(Wanted::default());
            host.applied().await;
            assert_eq!(ends(host), 0);
        }
    });
}

#[test]
fn a_virtual_address_leads_to_tasks_on_every_host() {
    overlay_test("a_virtual_address_leads_to_tasks_on_every_host", async |mut world| {
        let (hosts, mut cluster, tasks) = spread(&mut world, 3, network(2, false)).await;
        cluster.vips = vec![vip("10.0.2.100", &cluster), vip("fd00:0:0:2::100", &cluster)];
        let client = cluster.place(&mut world, &hosts[2], 9, vec![attach(&cluster.networks[0].clone(), 99)]).await;
        cluster.tell(&hosts).await;
        let names = ["T1", "T2", "T3"];
        all_answer(&names, "10.0.2.99", || within(&client, || ask("10.0.2.100", 80)));
        all_answer(&names, "fd00:0:0:2::63", || within(&client, || ask("fd00:0:0:2::100", 80)));
        all_answer(&names, "10.0.2.99", || within(&client, || ask_udp("10.0.2.100", 80)));
        // One that is among them sees itself as the gateway, the others see it.
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            seen.insert(within(&tasks[0], || ask("10.0.2.100", 80)).unwrap());
            if seen.len() == 3 {
                break;
            }
        }
        assert_eq!(seen, ["T1 saw 10.0.2.1", "T2 saw 10.0.2.11", "T3 saw 10.0.2.11"].map(str::to_owned).into());
        all_are_as_wanted(&hosts).await;
    });
}

#[test]
fn every_host_answers_on_a_published_port_and_tasks_see_the_client() {
    overlay_test("every_host_answers_on_a_published_port_and_tasks_see_the_client", async |mut world| {
        let hosts = hosts(3);
        let mut cluster = Cluster::new(3, &[network(1, true)]);
        let tasks = one_on_each(&mut world, &mut cluster, &hosts[..2]).await; // none on the third
        publish(&mut cluster);
        cluster.tell(&hosts).await;
        for host in &hosts {
            // Marks mean something else to the host.
            host.sh("for mark in 1 2 3; do ip rule add fwmark $mark prohibit priority 50; done");
        }
        let (client, names) = (World::client(), ["T1", "T2"]);
        for index in 1..=3 {
            all_answer(&names, CLIENT, || within(&client, || ask(&address(index), 8080)));
            all_answer(&names, CLIENT6, || within(&client, || ask(&address6(index), 8080)));
            all_answer(&names, CLIENT, || within(&client, || ask_udp(&address(index), 8080)));
            all_answer(&names, CLIENT6, || within(&client, || ask_udp(&address6(index), 8080)));
        }
        // The hosts themselves, by their address and by loopback; and a task by its host.
        let third = hosts[2].netns();
        all_answer(&names, &address(3), || within(&third, || ask(&address(3), 8080)));
        all_answer(&names, &address6(3), || within(&third, || ask(&address6(3), 8080)));
        all_answer(&names, "169.254.64.1", || within(&third, || ask("127.0.0.1", 8080)));
        all_answer(&names, "fd73:6b65:7000::1", || within(&third, || ask("::1", 8080)));
        all_answer(&names, &address(3), || within(&third, || ask(&address(1), 8080)));
        all_answer(&names, "169.254.64.1", || within(&tasks[0], || ask(&address(1), 8080)));
        // To the outside as well, by whichever host the task is on.
        for (index, task) in [(1, &tasks[0]), (2, &tasks[1])] {
            for (bind, to, host) in [("0.0.0.0:99", CLIENT, address(index)), ("[::]:99", CLIENT6, address6(index))] {
                let listener = within(&client, || TcpListener::bind(bind).unwrap());
                let stream = within(task, || connect(to, 99)).unwrap();
                assert_eq!(listener.accept().unwrap().1.ip().to_canonical().to_string(), host);
                drop(stream);
            }
        }
        all_are_as_wanted(&hosts).await;
    });
}

#[test]
fn a_client_that_keeps_its_port_may_come_by_another_host() {
    overlay_test("a_client_that_keeps_its_port_may_come_by_another_host", async |mut world| {
        let hosts = hosts(3);
        let mut cluster = Cluster::new(3, &[network(1, true)]);
        one_on_each(&mut world, &mut cluster, &hosts[..1]).await;
        publish(&mut cluster);
        cluster.tell(&hosts).await;
        let v4 = within(&World::client(), || UdpSocket::bind("0.0.0.0:4000").unwrap());
        let v6 = within(&World::client(), || UdpSocket::bind("[2001:db8::9]:4000").unwrap());
        // The first is where the task is. `ask_udp_from` refuses an answer of another one than was asked.
        for index in [1, 2, 3, 2, 1, 3] {
            assert_eq!(ask_udp_from(&v4, address(index).parse().unwrap(), 8080).unwrap(), format!("T1 saw {CLIENT}"));
            assert_eq!(ask_udp_from(&v6, address6(index).parse().unwrap(), 8080).unwrap(), format!("T1 saw {CLIENT6}"));
        }
    });
}

/// A kernel gives the same port to connections to different hosts, such as a load balancer's before the cluster.
#[test]
fn connections_from_one_port_by_several_hosts_do_not_meet_at_the_task() {
    overlay_test("connections_from_one_port_by_several_hosts_do_not_meet_at_the_task", async |mut world| {
        let hosts = hosts(3);
        let mut cluster = Cluster::new(3, &[network(1, true)]);
        one_on_each(&mut world, &mut cluster, &hosts[..1]).await;
        publish(&mut cluster);
        cluster.tell(&hosts).await;
        let client = World::client();
        let mut kept = Vec::new();
        // The first is where the task is.
        for index in [2, 1, 3] {
            kept.push(Kept::open(|| within(&client, || connect_from(5000, &address(index), 8080)), &format!("T1 saw {CLIENT}")));
            kept.push(Kept::open(|| within(&client, || connect_from(5000, &address6(index), 8080)), &format!("T1 saw {CLIENT6}")));
        }
        kept.into_iter().for_each(Kept::still_answers);
        all_are_as_wanted(&hosts).await;
    });
}

#[test]
fn an_internal_network_spans_hosts_and_leads_nowhere_else() {
    overlay_test("an_internal_network_spans_hosts_and_leads_nowhere_else", async |mut world| {
        let closed = Network { internal: true, ..network(3, false) };
        let (hosts, mut cluster, tasks) = spread(&mut world, 2, closed).await;
        cluster.vips = vec![vip("10.0.3.100", &cluster)];
        cluster.tell(&hosts).await;
        assert_eq!(within(&tasks[0], || ask("10.0.3.12", 80)).unwrap(), "T2 saw 10.0.3.11");
        assert_eq!(within(&tasks[1], || ask("fd00:0:0:3::b", 80)).unwrap(), "T1 saw fd00:0:0:3::c");
        all_answer(&["T2"], "10.0.3.11", || {
            // Until it is not oneself.
            (0..100)
                .map(|_| within(&tasks[0], || ask("10.0.3.100", 80)))
                .find(|answer| answer.as_ref().is_ok_and(|text| !text.contains("T1")))
                .unwrap()
        });
        for out in [CLIENT, CLIENT6, "198.18.0.1", "198.18.0.2"] {
            assert!(within(&tasks[0], || tcp(out, 80)).unwrap_err().contains("unreachable"), "{out}");
        }
        assert_eq!(hosts[0].in_sandbox(&cluster.networks[0], "ip -o link | grep -c gw || true").trim(), "0");
        all_are_as_wanted(&hosts).await;
    });
}

#[test]
fn a_host_that_has_ipv6_switched_off_reaches_the_others_all_the_same() {
    overlay_test("a_host_that_has_ipv6_switched_off_reaches_the_others_all_the_same", async |mut world| {
        let mut hosts = hosts(2);
        hosts[0].sh("for key in all default; do echo 1 > /proc/sys/net/ipv6/conf/$key/disable_ipv6; done");
        hosts[0] = Host::start(1);
        let mut cluster = Cluster::new(2, &[network(1, true)]);
        let tasks = one_on_each(&mut world, &mut cluster, &hosts).await;
        publish(&mut cluster);
        cluster.tell(&hosts).await;
        assert_eq!(within(&tasks[0], || ask("10.0.1.12", 80)).unwrap(), "T2 saw 10.0.1.11");
        assert_eq!(within(&tasks[1], || ask("10.0.1.11", 80)).unwrap(), "T1 saw 10.0.1.12");
        for index in [1, 2] {
            all_answer(&["T1", "T2"], CLIENT, || within(&World::client(), || ask(&address(index), 8080)));
        }
        all_are_as_wanted(&hosts).await;
    });
}
