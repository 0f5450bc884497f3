//! Networks that span hosts, against the real kernel: what changes, vanishes, crashes or is broken by others.

#[path = "support/hosts.rs"]
mod hosts;
mod support;

use hosts::*;
use skep_netlb::{Paths, network_mtu};
use support::*;

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

#[test]
fn a_task_that_moves_is_one_route_on_the_other_hosts() {
    overlay_test("a_task_that_moves_is_one_route_on_the_other_hosts", async |mut world| {
        let hosts = hosts(3);
        let mut cluster = Cluster::new(3, &[network(2, false)]);
        let tasks = one_on_each(&mut world, &mut cluster, &hosts[..2]).await;
        let plain = cluster.networks[0].clone();
        let third = cluster.place(&mut world, &hosts[2], 3, vec![attach(&plain, 13)]).await;
        cluster.tell(&hosts).await;
        assert_eq!(within(&third, || ask("10.0.2.12", 80)).unwrap(), "T2 saw 10.0.2.13");
        // Its successor on the third host has the same addresses; it is not gone itself yet.
        let (old, _) = cluster.tasks.remove(1);
        cluster.place(&mut world, &hosts[2], 22, vec![attach(&plain, 12)]).await;
        let heard = Monitor::start(&hosts[0], &plain);
        cluster.tell(&hosts).await;
        let events = heard.until_now();
        let of = |address: &str| events.lines().filter(|line| line.contains(address)).count();
        assert_eq!((of("10.0.2.12"), of("fd00:0:0:2::c"), events.lines().count()), (1, 1, 2), "{events}");
        let second = &tasks[1];
        for (from, seen, seen6) in [(&tasks[0], "10.0.2.11", "fd00:0:0:2::b"), (&third, "10.0.2.13", "fd00:0:0:2::d")] {
            assert_eq!(within(from, || ask("10.0.2.12", 80)).unwrap(), format!("T22 saw {seen}"));
            assert_eq!(within(from, || ask("fd00:0:0:2::c", 80)).unwrap(), format!("T22 saw {seen6}"));
        }
        assert!(second.exists());
        hosts[1].is_as_wanted().await;
        hosts[1].netlb.remove_task(old.task.clone()).await.unwrap();
        assert_eq!(within(&tasks[0], || ask("10.0.2.12", 80)).unwrap(), "T22 saw 10.0.2.11");
        // And one comes back to the host that had it.
        cluster.tasks.pop();
        cluster.place(&mut world, &hosts[1], 23, vec![attach(&plain, 12)]).await;
        cluster.tell(&hosts).await;
        assert_eq!(within(&third, || ask("10.0.2.12", 80)).unwrap(), "T23 saw 10.0.2.13");
        assert_eq!(within(&tasks[0], || ask("fd00:0:0:2::c", 80)).unwrap(), "T23 saw fd00:0:0:2::b");
        world.stop_responders();
        for host in &hosts {
            // What the kernel has not taken apart yet of the tasks that are gone may go now.
            host.netlb.audit().await.unwrap();
            host.is_as_wanted().await;
        }
    });
}

#[test]
fn a_host_that_vanishes_leaves_the_others_alone() {
    overlay_test("a_host_that_vanishes_leaves_the_others_alone", async |mut world| {
        let (hosts, mut cluster, tasks) = spread(&mut world, 3, network(1, true)).await;
        publish(&mut cluster);
        cluster.tell(&hosts).await;
        assert_eq!(within(&tasks[0], || ask("10.0.1.12", 80)).unwrap(), "T2 saw 10.0.1.11");
        cluster.nodes.remove(&2);
        // Its tasks are not given up yet by the manager, but get no connections.
        cluster.ports.clear();
        let ingress = cluster.networks[0].clone();
        let lists = "ip nexthop; ip rule; ip -6 rule; bridge fdb show dev vx0; ip -6 neigh show dev vx0";
        assert!(hosts[0].in_sandbox(&ingress, lists).contains("fe80::2"));
        let gone = cluster.tasks.remove(1);
        publish(&mut cluster);
        cluster.tasks.push(gone);
        cluster.tell(&hosts).await;
        let left = hosts[0].in_sandbox(&ingress, lists);
        for trace in ["fe80::2 ", "198.18.0.2", "lookup 1002", "id 2 "] {
            assert!(!left.contains(trace), "{trace}: {left}");
        }
        for nobody in ["10.0.1.12", "fd00:0:0:1::c"] {
            let error = within(&tasks[0], || ask(nobody, 80)).unwrap_err();
            assert!(error.contains("unreachable") || error.contains("No route"), "{nobody}: {error}");
        }
        assert_eq!(within(&tasks[0], || ask("10.0.1.13", 80)).unwrap(), "T3 saw 10.0.1.11");
        all_answer(&["T1", "T3"], CLIENT, || within(&World::client(), || ask(&address(1), 8080)));
        all_answer(&["T1", "T3"], CLIENT6, || within(&World::client(), || ask(&address6(3), 8080)));
        // It does not know that it is out, and nobody listens to it.
        assert!(!within(&tasks[1], || answers_soon("10.0.1.11", 80)));
        assert!(!within(&tasks[1], || answers_soon("fd00:0:0:1::b", 80)));
        // Not even as far as conntrack, whose lines name the first packet's addresses first.
        let flows = hosts[0].in_sandbox(&ingress, "cat /proc/net/nf_conntrack");
        let first_source = |line: &str| line.split(" src=").nth(1).map(|rest| rest.split(' ').next().unwrap().to_owned());
        let sources: Vec<String> = flows.lines().filter_map(first_source).collect();
        assert!(sources.contains(&"10.0.1.11".to_owned()), "it can be seen: {flows}");
        assert!(!sources.iter().any(|source| source == "10.0.1.12" || source.ends_with(":000c")), "{flows}");
        for host in [&hosts[0], &hosts[2]] {
            host.is_as_wanted().await;
        }
        // It is back.
        cluster.nodes.insert(2);
        publish(&mut cluster);
        cluster.tell(&hosts).await;
        all_answer(&["T1", "T2", "T3"], CLIENT, || within(&World::client(), || ask(&address(1), 8080)));
        assert_eq!(within(&tasks[1], || ask("10.0.1.11", 80)).unwrap(), "T1 saw 10.0.1.12");
    });
}

#[test]
fn a_restart_keeps_connections_between_hosts() {
    overlay_test("a_restart_keeps_connections_between_hosts", async |mut world| {
        let (mut hosts, mut cluster, tasks) = spread(&mut world, 2, network(1, true)).await;
        publish_second(&mut cluster);
        cluster.tell(&hosts).await;
        let keep = || {
            [
                Kept::open(|| within(&World::client(), || connect(&address(1), 8080)), "T2 saw 198.18.0.9"),
                Kept::open(|| within(&World::client(), || connect(&address6(1), 8080)), "T2 saw 2001:db8::9"),
                Kept::open(|| within(&tasks[0], || connect("10.0.1.12", 80)), "T2 saw 10.0.1.11"),
            ]
        };
        let kept = [keep(), keep(), keep()];
        let inside = || {
            let each = |host: u8| {
                sh(&format!(
                    "ls -i /run/h{host}/netns; nsenter --net=/run/h{host}/netns/sbx-{} sh -ec \
                     'ip -o link; ip nexthop; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; bridge fdb'",
                    network(1, true).id
                ))
            };
            [each(1), each(2)]
        };
        let before = inside();
        let [without, halfway, after] = kept;
        hosts.clear(); // gone without a word, both
        without.into_iter().for_each(Kept::still_answers);
        hosts = vec![Host::start(1), Host::start(2)];
        cluster.ensure_tasks(&hosts).await;
        halfway.into_iter().for_each(Kept::still_answers);
        cluster.tell(&hosts).await;
        after.into_iter().for_each(Kept::still_answers);
        assert_eq!(inside(), before);
        all_are_as_wanted(&hosts).await;
        all_answer(&["T2"], CLIENT, || within(&World::client(), || ask(&address(1), 8080)));
    });
}

#[test]
fn an_audit_mends_what_others_broke_between_hosts() {
    overlay_test("an_audit_mends_what_others_broke_between_hosts", async |mut world| {
        let (hosts, mut cluster, tasks) = spread(&mut world, 2, network(1, true)).await;
        publish_second(&mut cluster);
        cluster.tell(&hosts).await;
        let sandbox = hosts[0].sandbox(&cluster.networks[0]);
        for damage in [
            "nft flush ruleset",
            "ip link del vx0",
            "ip link set vx0 down",
            "ip link set vx0 mtu 1200",
            "ip link set vx0 address 02:00:00:00:00:99",
            "ip link set vx0 type vxlan learning",
            "ip addr flush dev vx0",
            "ip nexthop flush",
            "ip nexthop replace id 2 via fe80::77 dev vx0",
            "bridge fdb del 02:ab:10:01:00:02 dev vx0",
            "bridge fdb replace 02:ab:10:01:00:02 dev vx0 dst 198.18.0.77",
            "bridge fdb add 02:ab:10:01:00:77 dev vx0 dst 198.18.0.77",
            "ip -6 neigh flush dev vx0 nud permanent",
            "ip rule del fwmark 2 lookup 1002",
            "ip -6 rule add fwmark 0x77 lookup 1077 priority 1000 protocol 83",
            "ip route del default table 1002; ip -6 route del default table 1002",
            "ip route replace unreachable 10.0.1.12/32; ip -6 route del fd00:0:0:1::c/128",
            "ip route add 10.0.1.77/32 nhid 2 proto 83",
        ] {
            for host in &hosts {
                // Both are damaged: the way there and the way back.
                host.in_sandbox(
                    &cluster.networks[0],
                    &damage
                        .replace("00:02", &format!("00:0{}", 3 - host.index))
                        .replace("fwmark 2", &format!("fwmark {}", 3 - host.index))
                        .replace("1002", &format!("100{}", 3 - host.index))
                        .replace("id 2", &format!("id {}", 3 - host.index))
                        .replace("1.12/", &format!("1.1{}/", 3 - host.index))
                        .replace("::c/", &format!("::{:x}/", 13 - host.index)),
                );
                let audit = host.netlb.audit().await.unwrap_or_else(|error| panic!("after {damage}: {error:?}"));
                assert_ne!(audit.repaired, [""; 0], "after {damage}");
                let again = host.netlb.audit().await.unwrap();
                assert_eq!(again.repaired, [""; 0], "second audit after {damage}");
            }
            all_answer(&["T2"], CLIENT, || within(&World::client(), || ask(&address(1), 8080)));
            all_answer(&["T2"], CLIENT6, || within(&World::client(), || ask(&address6(1), 8080)));
            assert_eq!(within(&tasks[0], || ask("10.0.1.12", 80)).unwrap(), "T2 saw 10.0.1.11", "after {damage}");
            assert_eq!(within(&tasks[1], || ask("fd00:0:0:1::b", 80)).unwrap(), "T1 saw fd00:0:0:1::c", "after {damage}");
        }
        sh(&format!("umount {sandbox}; rm {sandbox}"));
        assert_ne!(hosts[0].netlb.audit().await.unwrap().repaired, [""; 0]);
        hosts[0].is_as_wanted().await;
        all_answer(&["T2"], CLIENT, || within(&World::client(), || ask(&address(1), 8080)));
        // What stands in the way of a change is found by the change itself, and tried again.
        hosts[0].in_sandbox(&cluster.networks[0], "ip link del vx0");
        cluster.place(&mut world, &hosts[1], 9, vec![attach(&cluster.networks[0].clone(), 19)]).await;
        for host in &hosts {
            host.netlb.set_wanted(cluster.for_node(host.index));
        }
        eventually_async("the change is made in spite of it", async || hosts[0].netlb.applied().await.is_ok()).await;
        assert_eq!(within(&tasks[0], || ask("10.0.1.19", 80)).unwrap(), "T9 saw 10.0.1.11");
    });
}

#[test]
fn a_foreign_flush_is_mended_unasked_and_ports_lead_to_other_hosts_again() {
    overlay_test("a_foreign_flush_is_mended_unasked_and_ports_lead_to_other_hosts_again", async |mut world| {
        let mut hosts = hosts(2);
        hosts[0] = Host::watchful(1);
        let mut cluster = Cluster::new(2, &[network(1, true)]);
        cluster.place(&mut world, &hosts[1], 2, vec![attach(&cluster.networks[0].clone(), 12)]).await;
        publish(&mut cluster);
        cluster.tell(&hosts).await;
        all_answer(&["T2"], CLIENT, || within(&World::client(), || ask(&address(1), 8080)));
        hosts[0].sh("nft flush ruleset");
        hosts[0].in_sandbox(&cluster.networks[0], "nft flush ruleset; ip nexthop flush");
        for host in [address(1), address6(1)] {
            eventually("the port leads there again", || within(&World::client(), || answers_soon(&host, 8080)));
        }
        all_answer(&["T2"], CLIENT, || within(&World::client(), || ask(&address(1), 8080)));
        all_answer(&["T2"], CLIENT6, || within(&World::client(), || ask(&address6(1), 8080)));
        eventually("the sandbox has its table again", || hosts[0].in_sandbox(&cluster.networks[0], "nft list tables").contains("ip6 skep"));
    });
}

#[test]
fn the_size_of_packets_changes_while_tasks_run() {
    overlay_test("the_size_of_packets_changes_while_tasks_run", async |mut world| {
        let (hosts, mut cluster, tasks) = spread(&mut world, 2, network(1, true)).await;
        publish_second(&mut cluster);
        cluster.tell(&hosts).await;
        let kept = Kept::open(|| within(&World::client(), || connect(&address(1), 8080)), "T2 saw 198.18.0.9");
        cluster.networks[0].mtu = 1350;
        for (task, _) in &mut cluster.tasks {
            task.attachments[0].network = cluster.networks[0].clone();
        }
        cluster.tell(&hosts).await;
        for (host, task) in hosts.iter().zip(&tasks) {
            let links = host.in_sandbox(&cluster.networks[0], "ip -o link show");
            assert_eq!(links.matches("mtu 1350").count(), 3, "vx0, gw and the task's: {links}");
            assert!(host.sh("ip -o link").contains("mtu 1350"), "the host's end of gw");
            assert!(sh(&format!("nsenter --net={} ip -o link show eth0", task.display())).contains("mtu 1350"));
            host.is_as_wanted().await;
        }
        kept.still_answers();
        // A task that was told so late that it still announces more: what fits is said for it, and to it.
        sh(&format!("nsenter --net={} ip link set eth0 mtu 1500", tasks[1].display()));
        let segments = |to: &str| {
            let stream = within(&World::client(), || connect(to, 8080)).unwrap();
            nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::TcpMaxSeg).unwrap()
        };
        // 12 bytes less than the clamp: what is got from a connected socket is without the timestamps.
        assert!((1200..=1310).contains(&segments(&address(1))), "{}", segments(&address(1)));
        assert!((1200..=1290).contains(&segments(&address6(1))), "{}", segments(&address6(1)));
    });
}

/// What the kernel of a host says of the way to another one; what it may measure for tasks there.
fn way(from: &Host, to: &str) -> Option<u32> {
    within(&from.netns(), || Paths::open().unwrap().mtu_to(to.parse().unwrap()).unwrap())
}

#[test]
fn the_size_of_packets_follows_the_cable_under_live_connections() {
    overlay_test("the_size_of_packets_follows_the_cable_under_live_connections", async |mut world| {
        let (hosts, mut cluster, _) = spread(&mut world, 2, network(1, true)).await;
        publish_second(&mut cluster);
        cluster.tell(&hosts).await;
        let open = || Kept::open(|| within(&World::client(), || connect(&address(1), 8080)), "T2 saw 198.18.0.9");
        let all_along = open();
        for size in [1400, 9000, 1400] {
            let kept = open();
            // The test's own ends first, so that nothing larger is ever on a narrower way.
            let ends = [1, 2].map(|index| format!("link set p{index} mtu {size}; ")).concat();
            ip(&[], &format!("{ends} link set br0 mtu {size}"));
            for host in &hosts {
                host.sh(&format!("ip link set eth0 mtu {size}"));
            }
            assert_eq!([way(&hosts[0], &address(2)), way(&hosts[1], &address(1))], [Some(size); 2]);
            let own = within(&hosts[0].netns(), || Paths::open().unwrap().mtu_of_device(address(1).parse().unwrap()).unwrap());
            assert_eq!(own, Some(size));
            cluster.networks[0].mtu = network_mtu(Some(size), false, false);
            for (task, _) in &mut cluster.tasks {
                task.attachments[0].network = cluster.networks[0].clone();
            }
            cluster.tell(&hosts).await;
            for host in &hosts {
                let links = host.in_sandbox(&cluster.networks[0], "ip -o link show");
                assert_eq!(links.matches(&format!("mtu {}", size - 50)).count(), 3, "vx0, gw and the task's: {links}");
            }
            kept.still_answers();
        }
        all_along.still_answers();
    });
}

#[test]
fn a_router_on_the_way_that_takes_less_is_found() {
    overlay_test("a_router_on_the_way_that_takes_less_is_found", async |_world| {
        let hosts = hosts(3);
        // Host 3 has another address, behind host 2 and a narrow cable.
        ip(&[], "link add n2 mtu 1300 type veth peer name n3 mtu 1300; link set n2 netns h2; link set n3 netns h3");
        hosts[1].sh("ip addr add 203.0.113.2/24 dev n2; ip link set n2 up; echo 1 > /proc/sys/net/ipv4/ip_forward");
        hosts[2].sh("ip addr add 203.0.113.3/24 dev n3; ip link set n3 up; ip route add 198.18.0.1/32 via 203.0.113.2");
        hosts[0].sh(&format!("ip route add 203.0.113.0/24 via {}", address(2)));
        let behind = "203.0.113.3";
        assert_eq!(way(&hosts[0], behind), Some(1500), "nobody said anything yet");
        let paths = within(&hosts[0].netns(), || Paths::open().unwrap());
        eventually("the router said how much it takes", || {
            paths.probe(behind.parse().unwrap(), 4789, 1500);
            way(&hosts[0], behind) == Some(1300)
        });
        assert_eq!(way(&hosts[0], &address(2)), Some(1500), "other ways are as they were");
        assert_eq!(way(&hosts[0], "192.0.2.77"), None, "there is no way");
        assert_eq!(network_mtu(Some(1300), false, false), 1280, "what does not fit travels in two pieces");
    });
}

#[test]
fn what_spans_hosts_is_removed_without_a_trace() {
    overlay_test("what_spans_hosts_is_removed_without_a_trace", async |mut world| {
        let hosts = hosts(2);
        let line = "ip -br link | cut -d' ' -f1; nft list ruleset; ip rule; ip -6 rule; ip nexthop; ss -Hulpn
            { ip route show table all; ip -6 route show table all; } | { grep -v 'proto kernel' || true; }";
        let traces = || hosts.iter().map(|host| host.sh(line)).collect::<Vec<_>>();
        let before = traces();
        let networks = [network(1, true), network(2, false)];
        let mut cluster = Cluster::new(2, &networks);
        for host in &hosts {
            let attachments = networks.iter().map(|network| attach(network, 10 + host.index)).collect();
            cluster.place(&mut world, host, host.index, attachments).await;
        }
        cluster.tell(&hosts).await;
        assert!(hosts[0].sh("ss -Hulpn").contains(":4789"), "it listens");
        world.stop_responders();
        // A network that is on this host only from now on, and one that is not at all.
        cluster.networks.pop();
        let mut want = cluster.for_node(1);
        want.networks[0].overlay = None;
        want.networks[0].endpoints.clear();
        hosts[0].netlb.remove_task(cluster.tasks[0].0.task.clone()).await.unwrap();
        want.tasks.clear();
        hosts[0].netlb.set_wanted(want);
        hosts[0].applied().await;
        let left = hosts[0].in_sandbox(&networks[0], "ip -o link; ip nexthop; ip rule; ip -6 rule; ip route");
        for trace in ["vx0", "fe80", "lookup 100", "10.0.1.12"] {
            assert!(!left.contains(trace), "{trace}: {left}");
        }
        // Both ids are free at once.
        hosts[0].sh("for id in 4097 4098; do ip link add free$id type vxlan id $id dstport 4789; ip link del free$id; done");
        eventually("the other network's link is gone", || !hosts[0].sh("ip -br link").contains("g1002"));
        hosts[0].is_as_wanted().await;
        for host in &hosts {
            host.netlb.remove_everything().await.unwrap();
            host.sh("for id in 4097 4098; do ip link add free$id type vxlan id $id dstport 4789; ip link del free$id; done");
        }
        assert_eq!(sh("ls /run/h1/netns /run/h2/netns"), "/run/h1/netns:\n\n/run/h2/netns:\n");
        eventually(&format!("the hosts are as before: {before:?}"), || traces() == before);
        // Once more from the start, as if it had never been; and then by one who knows only the files.
        cluster.networks = networks.to_vec();
        cluster.ensure_tasks(&hosts).await;
        cluster.tell(&hosts).await;
        drop(hosts);
        for host in [Host::start(1), Host::start(2)] {
            host.netlb.remove_everything().await.unwrap();
            host.sh("for id in 4097 4098; do ip link add free$id type vxlan id $id dstport 4789; ip link del free$id; done");
        }
    });
}

#[test]
fn what_another_has_is_told_and_tried_again() {
    overlay_test("what_another_has_is_told_and_tried_again", async |mut world| {
        let hosts = hosts(2);
        hosts[0].sh("ip link add theirs type vxlan id 4098 dstport 4789");
        let mut cluster = Cluster::new(2, &[network(2, false), network(1, true)]);
        let tasks = one_on_each(&mut world, &mut cluster, &hosts).await;
        for host in &hosts {
            host.netlb.set_wanted(cluster.for_node(host.index));
        }
        let error = hosts[0].netlb.applied().await.unwrap_err().to_string();
        assert!(error.contains("network net2 (id 4098, UDP port 4789)") && error.contains("another port"), "{error}");
        hosts[1].applied().await;
        // The other network is in place all the same.
        assert!(hosts[0].in_sandbox(&cluster.networks[1], "ip -o link").contains("vx0"));
        hosts[0].sh("ip link del theirs");
        eventually_async("it is tried again", async || hosts[0].netlb.applied().await.is_ok()).await;
        assert_eq!(within(&tasks[0], || ask("10.0.2.12", 80)).unwrap(), "T2 saw 10.0.2.11");
        hosts[0].is_as_wanted().await;
    });
}
