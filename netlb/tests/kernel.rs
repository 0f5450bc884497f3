//! Against the real kernel. Each test is on a host of its own, see `support`.

mod support;

use skep_netlb::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use support::*;

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

#[test]
fn a_published_port_reaches_every_task_with_the_clients_address() {
    on_own_host("a_published_port_reaches_every_task_with_the_clients_address", async |mut world| {
        let netlb = World::netlb();
        three_tasks(&mut world, &netlb).await;
        all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
        all_three_answer(CLIENT6, || within(&World::client(), || tcp(HOST6, 8080)));
        all_three_answer(CLIENT, || within(&World::client(), || udp(HOST, 8080)));
        all_three_answer(CLIENT6, || within(&World::client(), || udp(HOST6, 8080)));
    });
}

#[test]
fn the_host_itself_reaches_a_published_port_by_any_of_its_addresses() {
    on_own_host("the_host_itself_reaches_a_published_port_by_any_of_its_addresses", async |mut world| {
        let netlb = World::netlb();
        three_tasks(&mut world, &netlb).await;
        all_three_answer("169.254.64.1", || tcp("127.0.0.1", 8080));
        all_three_answer("fd73:6b65:7000::1", || tcp("::1", 8080));
        all_three_answer("169.254.64.1", || udp("127.0.0.1", 8080));
        all_three_answer("fd73:6b65:7000::1", || udp("::1", 8080));
        all_three_answer(HOST, || tcp(HOST, 8080));
        all_three_answer(HOST6, || tcp(HOST6, 8080));
        sh("busybox ping -c1 -W1 ::1 || test $? = 127");
    });
}

#[test]
fn a_task_reaches_published_ports_and_the_outside() {
    on_own_host("a_task_reaches_published_ports_and_the_outside", async |mut world| {
        let netlb = World::netlb();
        let (_, tasks) = three_tasks(&mut world, &netlb).await;
        let path = netlb.task_path(&tasks[0].task);
        // Its own published port, by the host's address: among the three is itself.
        all_three_answer("169.254.64.1", || within(&path, || tcp(HOST, 8080)));
        all_three_answer("fd73:6b65:7000::1", || within(&path, || tcp(HOST6, 8080)));
        // Another task, directly.
        assert_eq!(within(&path, || tcp("10.0.1.12", 80)).unwrap(), "T2 saw 10.0.1.11");
        assert_eq!(within(&path, || tcp("fd00:0:0:1::c", 80)).unwrap(), "T2 saw fd00:0:0:1::b");
        // The outside, which must see the host's address.
        for (bind, host) in [("0.0.0.0:99", HOST), ("[::]:99", HOST6)] {
            let listener = within(&World::client(), || TcpListener::bind(bind).unwrap());
            let to = if host == HOST { CLIENT } else { CLIENT6 };
            let stream = within(&path, || connect(to, 99)).unwrap();
            let from = listener.accept().unwrap().1.ip().to_canonical();
            assert_eq!(from.to_string(), host);
            drop(stream);
        }
        // An address that nobody has is refused at once, not swallowed.
        let error = within(&path, || tcp("10.0.1.99", 80)).unwrap_err();
        assert!(error.contains("unreachable") || error.contains("No route"), "{error}");
    });
}

#[test]
fn what_is_removed_leaves_nothing() {
    on_own_host("what_is_removed_leaves_nothing", async |mut world| {
        let before = look("ip -br link; nft list ruleset; ip route show table all | { grep -v 'proto kernel' || true; }; ls /run");
        let netlb = World::netlb();
        let (_, tasks) = three_tasks(&mut world, &netlb).await;
        world.stop_responders();
        for task in &tasks {
            netlb.remove_task(task.task.clone()).await.unwrap();
        }
        netlb.set_wanted(Wanted::default());
        netlb.applied().await.unwrap();
        assert_eq!(sh("ls /run/skep/netns; grep -c skep/netns /proc/self/mountinfo || true"), "0\n");
        eventually("the links are gone", || !sh("ip -br link").contains("sk"));
        assert!(!sh("nft list ruleset").contains("elements"));
        netlb.remove_everything().await.unwrap();
        assert_eq!(
            look("ip -br link; nft list ruleset; ip route show table all | { grep -v 'proto kernel' || true; }; rm -r /run/skep; ls /run"),
            before
        );
    });
}

#[test]
fn everything_is_removed_at_once_on_leaving() {
    on_own_host("everything_is_removed_at_once_on_leaving", async |mut world| {
        let before = look("ip -br link; nft list ruleset; ip route show table all | { grep -v 'proto kernel' || true; }");
        let netlb = World::netlb();
        three_tasks(&mut world, &netlb).await;
        netlb.remove_everything().await.unwrap();
        assert_eq!(sh("ls /run/skep/netns"), "");
        assert_eq!(look("ip -br link; nft list ruleset; ip route show table all | { grep -v 'proto kernel' || true; }"), before);
    });
}

#[test]
fn asking_again_changes_nothing() {
    on_own_host("asking_again_changes_nothing", async |mut world| {
        let netlb = World::netlb();
        let (_, tasks) = three_tasks(&mut world, &netlb).await;
        let all = || {
            look("ls -i /run/skep/netns; ip link; ip route show table all | { grep -v 'proto kernel' || true; }; nft list ruleset; ip -n client link
                for ns in /run/skep/netns/*; do nsenter --net=$ns ip addr; nsenter --net=$ns ip route show table all | { grep -v 'proto kernel' || true; }; done")
        };
        let before = all();
        for task in &tasks {
            netlb.ensure_task(task.clone()).await.unwrap();
        }
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        assert_eq!(all(), before);
    });
}

#[test]
fn an_audit_mends_what_others_broke() {
    on_own_host("an_audit_mends_what_others_broke", async |mut world| {
        let netlb = World::netlb();
        let (_, tasks) = three_tasks(&mut world, &netlb).await;
        let host_link = sh("ip -br link | grep -o '^sk[^@]*'").trim().to_owned();
        let sandbox = sh("ls -d /run/skep/netns/sbx-*").trim().to_owned();
        let task = netlb.task_path(&tasks[0].task);
        let task = task.display();
        for damage in [
            "nft flush ruleset".to_owned(),
            format!("nsenter --net={sandbox} nft flush ruleset"),
            "nft delete element ip $(nft list tables ip | awk '{print $3}') ports '{ tcp . 8080 }'".to_owned(),
            "nft flush chain ip $(nft list tables ip | awk '{print $3}') leave".to_owned(),
            "t=$(nft list tables ip | awk '{print $3}'); nft flush chain ip $t leave; nft delete chain ip $t leave; \
             nft add chain ip $t leave '{ type filter hook input priority 5; }'"
                .to_owned(),
            format!("ip link set {host_link} down"),
            format!("ip addr flush dev {host_link}"),
            format!("ip link del {host_link}"),
            format!("nsenter --net={sandbox} ip route flush table main"),
            format!("nsenter --net={sandbox} ip addr flush dev lo"),
            format!("nsenter --net={task} ip link del eth0"),
            format!("nsenter --net={task} ip neigh flush dev eth0 nud permanent"),
            format!("nsenter --net={task} ip route flush table main"),
            format!("nsenter --net={task} ip addr flush dev eth0"),
            format!("umount {sandbox}; rm {sandbox}"),
        ] {
            sh(&damage);
            let audit = netlb.audit().await.unwrap_or_else(|error| panic!("after {damage}: {error:?}"));
            assert_ne!(audit.repaired, [""; 0], "after {damage}");
            let again = netlb.audit().await.unwrap();
            assert_eq!(again.repaired, [""; 0], "second audit after {damage}");
            all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
            all_three_answer(CLIENT6, || within(&World::client(), || tcp(HOST6, 8080)));
            all_three_answer("fd73:6b65:7000::1", || tcp("::1", 8080));
        }
    });
}

#[test]
fn an_audit_removes_what_nobody_wants() {
    on_own_host("an_audit_removes_what_nobody_wants", async |mut world| {
        let netlb = World::netlb();
        three_tasks(&mut world, &netlb).await;
        sh("touch /run/skep/netns/0000000000000000000000099; touch /run/skep/netns/half
            ip link add skother0 type veth peer name p0; ip link add $(ip -br link | grep -om1 '^sk.....')gff type veth peer name p1");
        let audit = netlb.audit().await.unwrap();
        assert_eq!(audit.repaired.len(), 3, "{audit:?}");
        assert_eq!(sh("ls /run/skep/netns | wc -l").trim(), "4");
        assert_eq!(sh("ip -br link | grep -c '^sk'").trim(), "2", "another instance's stays");
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}

#[test]
fn a_restart_takes_over_running_tasks_without_a_gap() {
    on_own_host("a_restart_takes_over_running_tasks_without_a_gap", async |mut world| {
        let netlb = World::netlb();
        let (ingress, tasks) = three_tasks(&mut world, &netlb).await;
        let inodes = sh("ls -i /run/skep/netns");
        // A table that is made anew has another handle, and new hooks: between them and the old ones a packet may meet none.
        let sandbox = sh("ls -d /run/skep/netns/sbx-*").trim().to_owned();
        let tables = || sh(&format!("for into in '' 'nsenter --net={sandbox}'; do $into nft -a list ruleset | grep ^table; done"));
        let handles = tables();
        assert_eq!(handles.lines().count(), 4, "{handles}");
        let ours = sh("nft list tables ip | awk '{print $3}'").trim().to_owned();
        sh(&format!(
            "nft 'add chain ip {ours} earlier; add rule ip {ours} earlier drop; add set ip {ours} old {{ type ipv4_addr; }}; \
             add element ip {ours} old {{ 10.1.2.3 }}'"
        ));
        let mut held = within(&World::client(), || connect(HOST, 8080)).unwrap();
        let mut line = [0; 100];
        let _ = patiently(|| held.read(&mut line)).unwrap();
        drop(netlb);

        all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
        let netlb = World::netlb();
        netlb.audit().await.unwrap();
        all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
        for task in &tasks {
            netlb.ensure_task(task.clone()).await.unwrap();
            all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
        }
        let ports = vec![ingress_port(Protocol::Tcp, 8080, &tasks)];
        netlb.set_wanted(wanted(&[ingress], &tasks, ports));
        netlb.applied().await.unwrap();
        all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        assert_eq!(sh("ls -i /run/skep/netns"), inodes);
        assert_eq!(tables(), handles);
        let left = sh("nft list ruleset");
        assert!(!left.contains("earlier") && !left.contains("set old"), "{left}");
        held.write_all(b"still").unwrap();
        let length = patiently(|| held.read(&mut line)).unwrap();
        assert_eq!(&line[..length], b"still");
    });
}
