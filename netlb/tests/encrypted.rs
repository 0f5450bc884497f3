//! Encrypted networks between several hosts, with real packets. What encrypts is the kernel's WireGuard where there is one, else our own;
//! `SKEP_WIREGUARD=kernel` or `userspace` says which.

mod encryption;
#[path = "support/hosts.rs"]
mod hosts;
mod support;

use encryption::*;
use hosts::*;
use skep_netlb::*;
use std::net::UdpSocket;
use support::*;

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

#[test]
fn tasks_reach_each_other_and_the_cable_shows_nothing_in_clear() {
    encrypted_test("tasks_reach_each_other_and_the_cable_shows_nothing_in_clear", async |world| {
        nothing_in_clear(world, Underlay::V4).await
    });
}

#[test]
fn the_same_where_the_cable_speaks_ipv6() {
    encrypted_test("the_same_where_the_cable_speaks_ipv6", async |world| nothing_in_clear(world, Underlay::V6).await);
}

async fn nothing_in_clear(mut world: World, underlay: Underlay) {
    let mut secured = Secured::spread(&mut world, 3, underlay).await;
    let cable = Cable::watch();
    // What is looked for is seen where it is.
    secured.encrypted = false;
    secured.tell().await;
    secured.all_reach_each_other();
    assert!(cable.clear() > 0, "{}", cable.shows());
    assert_eq!(secured.hosts[0].netlb.encryption().await.unwrap(), EncryptionStatus::default());
    secured.encrypted = true;
    secured.tell().await;
    // What was said last may have come in clear to one who was told first, and was dropped.
    let mut before = Vec::new();
    for host in &secured.hosts {
        before.push(host.netlb.encryption().await.unwrap().dropped);
    }
    cable.reset();
    secured.all_reach_each_other();
    assert_eq!(cable.clear(), 0, "{}", cable.shows());
    assert!(cable.wireguard() > 0, "{}", cable.shows());
    for (host, before) in secured.hosts.iter().zip(before) {
        host.is_as_wanted().await;
        let status = host.netlb.encryption().await.unwrap();
        assert!(status.by.is_some());
        assert_eq!((status.dropped, status.peers.len()), (before, 2));
        assert!(status.peers.iter().all(|peer| peer.handshake.is_some()), "{status:?}");
    }
    secured.end(&mut world).await;
}

#[test]
fn a_clear_packet_for_an_encrypted_network_is_dropped_and_counted() {
    encrypted_test("a_clear_packet_for_an_encrypted_network_is_dropped_and_counted", async |mut world| {
        let mut secured = Secured::spread(&mut world, 2, Underlay::V4).await;
        let ear = Ear::open(&secured.tasks[0]);
        secured.encrypted = false;
        secured.tell().await;
        let forged = Forged::new(&secured.network);
        // In clear such a packet is heard: the forgery is good. VXLAN here has one family, and so has its socket.
        for way in Way::ALL.into_iter().filter(|way| way.is_ipv4()) {
            forged.send(way, 1);
            eventually(&format!("{way:?} is heard in clear"), || ear.heard());
        }
        secured.encrypted = true;
        secured.tell().await;
        let host = &secured.hosts[0];
        let dropped = async || host.netlb.encryption().await.unwrap().dropped.came_clear;
        for (way, count) in Way::ALL.into_iter().zip(1..) {
            forged.send(way, 1);
            eventually_async(&format!("{way:?} is dropped and counted"), async || dropped().await == count).await;
        }
        // Another's network with another number is none of ours.
        Forged::new(&network(9, false)).send(Way::V4, 1);
        secured.all_reach_each_other();
        assert!(!ear.heard(), "nothing of it came through");
        assert_eq!(dropped().await, 4);
        secured.end(&mut world).await;
    });
}

#[test]
fn tables_that_others_flush_come_back() {
    encrypted_test("tables_that_others_flush_come_back", async |mut world| {
        let secured = Secured::spread(&mut world, 2, Underlay::V4).await;
        let watchful = Host::watchful_again(&secured).await;
        watchful.sh("nft flush ruleset");
        eventually("the table is back", || watchful.sh("nft list ruleset").contains("clear packets of encrypted networks"));
        let forged = Forged::new(&secured.network);
        eventually_async("a clear packet is dropped and counted", async || {
            forged.send(Way::V4, 1);
            watchful.netlb.encryption().await.unwrap().dropped.came_clear > 0
        })
        .await;
        watchful.netlb.remove_everything().await.unwrap();
        secured.end(&mut world).await;
    });
}

#[test]
fn without_a_tunnel_nothing_leaves() {
    encrypted_test("without_a_tunnel_nothing_leaves", async |mut world| {
        let secured = Secured::spread(&mut world, 2, Underlay::V4).await;
        let cable = Cable::watch();
        secured.all_reach_each_other();
        // There is a way to everywhere, also for addresses within the tunnels.
        let host = &secured.hosts[0];
        host.sh("ip -6 route add default via 2001:db8::2 dev eth0");
        let gone = |host: &Host| host.sh("for link in $(ip -br link | grep -o '^sw[^ @]*'); do ip link del $link; done");
        gone(host);
        assert!(!secured.reaches(0, 1));
        // Nor by the default route, if somebody takes our route away too: the table says no.
        host.sh("ip -6 route del unreachable fd4e:9c1b:7a35::/64");
        eventually_async("it is counted", async || {
            assert!(!secured.reaches(0, 1));
            host.netlb.encryption().await.unwrap().dropped.left_clear > 0
        })
        .await;
        // And whatever else would go there.
        let sent = within(&host.netns(), || UdpSocket::bind("[::]:0").unwrap().send_to(b"lost", "[fd4e:9c1b:7a35::2]:9"));
        assert!(sent.is_err() && host.netlb.encryption().await.unwrap().dropped.astray > 0, "{sent:?}");
        assert_eq!(cable.clear(), 0, "{}", cable.shows());
        let mended = host.netlb.audit().await.unwrap().repaired;
        assert!(mended.iter().any(|what| what.contains("tunnel")), "{mended:?}");
        host.is_as_wanted().await;
        secured.all_reach_each_other();
        assert_eq!(cable.clear(), 0, "{}", cable.shows());
        secured.end(&mut world).await;
    });
}

#[test]
fn a_wrong_key_is_no_traffic() {
    encrypted_test("a_wrong_key_is_no_traffic", async |mut world| {
        let mut secured = Secured::spread(&mut world, 3, Underlay::V4).await;
        let cable = Cable::watch();
        // The others are told a key for the second host that is not its.
        secured.forge(2);
        secured.tell().await;
        assert!(!secured.reaches(0, 1) && !secured.reaches(1, 0) && !secured.reaches(1, 2));
        secured.reach(0, 2);
        secured.forged.clear();
        secured.tell().await;
        secured.all_reach_each_other();
        assert_eq!(cable.clear(), 0, "{}", cable.shows());
        secured.end(&mut world).await;
    });
}

#[test]
fn a_node_that_is_removed_is_not_heard_any_more() {
    encrypted_test("a_node_that_is_removed_is_not_heard_any_more", async |mut world| {
        let mut secured = Secured::spread(&mut world, 3, Underlay::V4).await;
        let cable = Cable::watch();
        secured.all_reach_each_other();
        // It does not know of it, and its VXLAN is still there on all of them.
        secured.strangers.insert(3);
        secured.tell_only(&[1, 2]).await;
        assert!(!secured.reaches(2, 0) && !secured.reaches(2, 1) && !secured.reaches(0, 2));
        secured.reach(0, 1);
        secured.reach(1, 0);
        secured.strangers.clear();
        secured.tell().await;
        secured.all_reach_each_other();
        assert_eq!(cable.clear(), 0, "{}", cable.shows());
        secured.end(&mut world).await;
    });
}

#[test]
fn keys_are_rotated_under_connections_that_last() {
    encrypted_test("keys_are_rotated_under_connections_that_last", async |mut world| {
        let mut secured = Secured::spread(&mut world, 3, Underlay::V4).await;
        let cable = Cable::watch();
        let tasks = secured.tasks.clone();
        let stream = Stream::start(&tasks[0], &tasks[2], "10.0.2.13");
        let keep = || Kept::open(|| within(&tasks[0], || connect("10.0.2.12", 80)), "T2 saw 10.0.2.11");
        let mut kept = vec![keep(), keep(), keep(), keep()].into_iter();
        let old = secured.public(1, 4);
        for (epochs, sending) in [(&[4, 5][..], 4), (&[4, 5], 5), (&[5], 5)] {
            (secured.epochs, secured.sending) = (epochs.to_vec(), sending);
            // One host after the other, as it is in life; those who know more talk to those who know less.
            for index in 1..=3 {
                secured.tell_only(&[index]).await;
                secured.all_reach_each_other();
            }
            kept.next().unwrap().still_answers();
            stream.goes_on();
        }
        kept.next().unwrap().still_answers();
        for (host, index) in secured.hosts.iter().zip(1..) {
            secured.keyring(index).keep_only(&[KeyEpoch(5)]).unwrap();
            host.is_as_wanted().await;
            assert_eq!(host.sh("ip -br link | grep -c ^sw").trim(), "1");
        }
        assert_ne!(secured.public(1, 4), old, "the old key is gone");
        assert_eq!(cable.clear(), 0, "{}", cable.shows());
        eprintln!("retransmitted while keys were rotated: {}", stream.end());
        secured.end(&mut world).await;
    });
}

#[test]
fn a_restart_keeps_connections_of_encrypted_networks() {
    encrypted_test("a_restart_keeps_connections_of_encrypted_networks", async |mut world| {
        let mut secured = Secured::spread(&mut world, 2, Underlay::V4).await;
        let cable = Cable::watch();
        let task = secured.tasks[0].clone();
        let keep = || Kept::open(|| within(&task, || connect("10.0.2.12", 80)), "T2 saw 10.0.2.11");
        let (during, after) = (keep(), keep());
        let by = secured.hosts[0].netlb.encryption().await.unwrap().by.unwrap();
        secured.hosts.remove(0);
        match by {
            // The kernel goes on without us.
            WireGuard::Kernel => during.still_answers(),
            WireGuard::Userspace => {
                let seen = || run_quietly("nsenter", &["--net=/run/netns/h1", "sh", "-ec", "ip -br link; cat /proc/net/udp6"]).unwrap();
                eventually("its tunnel has ended with it", || !seen().contains("\nsw") && !seen().contains(UDP_51820));
                assert!(!secured.reaches(0, 1));
            }
        }
        secured.start_again(1).await;
        secured.tell().await;
        after.still_answers();
        secured.all_reach_each_other();
        secured.hosts[0].is_as_wanted().await;
        assert_eq!(cable.clear(), 0, "{}", cable.shows());
        secured.end(&mut world).await;
    });
}

#[test]
fn a_host_that_cannot_encrypt_says_so_and_sends_nothing() {
    encrypted_test("a_host_that_cannot_encrypt_says_so_and_sends_nothing", async |mut world| {
        let mut secured = Secured::spread(&mut world, 2, Underlay::V4).await;
        secured.encrypted = false;
        secured.tell().await;
        secured.all_reach_each_other();
        let cable = Cable::watch();
        // Packets that are larger than what the tunnel carries: told before it is found out by loss. It was not encrypted, so it is cut off.
        secured.path_mtu = 1400;
        secured.encrypted = true;
        secured.hosts[0].netlb.set_wanted(secured.for_node(1));
        let why = secured.hosts[0].netlb.applied().await.unwrap_err().to_string();
        assert!(why.contains("1370 bytes, and encrypted ones 1270"), "{why}");
        assert!(!secured.reaches(0, 1));
        assert_eq!(cable.clear(), 0, "{}", cable.shows());
        secured.path_mtu = 1500;
        // No keys yet.
        let mut without_keys = secured.for_node(1);
        without_keys.encryption.as_mut().unwrap().tunnels.clear();
        secured.hosts[0].netlb.set_wanted(without_keys);
        let why = secured.hosts[0].netlb.applied().await.unwrap_err().to_string();
        assert!(why.contains("no keys are known yet"), "{why}");
        assert!(!secured.reaches(0, 1));
        if can_encrypt(Driver::Kernel).is_err() {
            secured.driver = Driver::Kernel;
            secured.hosts[0].netlb.set_wanted(secured.for_node(1));
            let why = secured.hosts[0].netlb.applied().await.unwrap_err().to_string();
            assert!(why.contains("kernel has no WireGuard") && why.contains("load the module"), "{why}");
            assert!(!secured.reaches(0, 1));
            assert_eq!(cable.clear(), 0, "{}", cable.shows());
            secured.driver = driver();
        }
        secured.tell().await;
        secured.all_reach_each_other();
        secured.end(&mut world).await;
    });
}

#[test]
fn a_host_with_ipv6_switched_off_encrypts_all_the_same() {
    encrypted_test("a_host_with_ipv6_switched_off_encrypts_all_the_same", async |mut world| {
        let mut secured = Secured::spread(&mut world, 2, Underlay::V4).await;
        let cable = Cable::watch();
        let host = secured.hosts.remove(0);
        host.netlb.remove_everything().await.unwrap();
        host.sh("for which in all default; do echo 1 > /proc/sys/net/ipv6/conf/$which/disable_ipv6; done");
        drop(host);
        secured.start_again(1).await;
        secured.tell().await;
        world.respond(&secured.tasks[0], "T1");
        assert_eq!(within(&secured.tasks[0], || ask("10.0.2.12", 80)).unwrap(), "T2 saw 10.0.2.11");
        assert_eq!(within(&secured.tasks[1], || ask("10.0.2.11", 80)).unwrap(), "T1 saw 10.0.2.12");
        secured.hosts[0].is_as_wanted().await;
        assert_eq!(cable.clear(), 0, "{}", cable.shows());
        secured.end(&mut world).await;
    });
}

/// Not a test but a figure: `cargo test --release -p skep-netlb --test encrypted -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure_throughput() {
    encrypted_test("measure_throughput", async |mut world| {
        let mut secured = Secured::spread(&mut world, 2, Underlay::V4).await;
        for encrypted in [false, true, false, true] {
            secured.encrypted = encrypted;
            secured.tell().await;
            secured.all_reach_each_other();
            let tasks = secured.tasks.clone();
            let (megabits, cpu) = throughput(&tasks[0], &tasks[1], "10.0.2.12");
            let memory = std::fs::read_to_string("/proc/self/status").unwrap();
            let memory = memory.lines().find(|line| line.starts_with("VmHWM")).unwrap();
            eprintln!("encrypted {encrypted}: {megabits:.0} Mbit/s of TCP, {cpu:.2} CPU seconds of this process a second, {memory}");
        }
        secured.end(&mut world).await;
    });
}
