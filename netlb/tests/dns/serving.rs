use crate::support::{World, attach, eventually, network, on_own_host, run_quietly, sh, task, tcp, wanted, within};
use crate::tools::*;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use skep_netlb::dns::{Asker, Asking, NetworkNames, Readiness, TaskNames};
use skep_types::NetworkId;
use std::net::{TcpListener, UdpSocket};

#[test]
fn a_task_asks_over_udp_and_tcp_and_keeps_port_53_for_itself() {
    on_own_host("serving::a_task_asks_over_udp_and_tcp_and_keeps_port_53_for_itself", async |_world| {
        let (dns, netns) = (dns(), namespace(1));
        let own = within(&netns, || UdpSocket::bind("0.0.0.0:53").unwrap());
        dns.serve(&task_id(1), &netns, asking(false)).await.unwrap();
        let own_tcp = within(&netns, || TcpListener::bind("0.0.0.0:53").unwrap());
        assert_eq!(addresses(&ask(&netns, "web", RecordType::A)), [WEB]);
        assert_eq!(addresses(&ask_tcp(&netns, "SITE", RecordType::AAAA)), ["fd00::250"]);
        assert_eq!(ask(&netns, "250.1.0.10.in-addr.arpa", RecordType::PTR).answers[0].data.to_string(), "web.front.");
        assert_eq!(ask(&netns, "_http._tcp.web", RecordType::SRV).answers[0].data.to_string(), "0 0 80 web.front.");
        let closed = ask(&netns, "example.org", RecordType::A);
        assert_eq!((closed.response_code, dns.counters().forwarded), (ResponseCode::NXDomain, 0));
        // What the task itself serves on port 53 of its other addresses is its own matter.
        let program = within(&netns, || UdpSocket::bind("127.0.0.1:0").unwrap());
        program.send_to(b"mine", "127.0.0.1:53").unwrap();
        assert_eq!(own.recv_from(&mut [0; 9]).unwrap().0, 4);
        own_tcp.set_nonblocking(true).unwrap();
        assert!(own_tcp.accept().is_err(), "nobody came there");
        dns.stop_all().await;
    });
}

#[test]
fn a_change_is_seen_by_the_next_question() {
    on_own_host("serving::a_change_is_seen_by_the_next_question", async |_world| {
        let (dns, netns) = (dns(), namespace(1));
        dns.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        let network = NetworkId::for_test(1);
        for last in 1..50 {
            let address = format!("10.0.1.{last}");
            dns.change_names(|names| names.network_mut(&network).unwrap().set_service(web(&[&address])));
            assert_eq!(addresses(&ask(&netns, "web", RecordType::A)), [address]);
        }
        // A task that is on no network any more sees nothing of it.
        let mut nowhere = asking(false);
        nowhere.asker.networks.clear();
        dns.serve(&task_id(1), &netns, nowhere).await.unwrap();
        assert_eq!(ask(&netns, "web", RecordType::A).response_code, ResponseCode::NXDomain);
        dns.stop_all().await;
    });
}

#[test]
fn a_long_answer_is_had_over_tcp() {
    on_own_host("serving::a_long_answer_is_had_over_tcp", async |_world| {
        let (dns, netns) = (dns(), namespace(1));
        dns.serve(&task_id(1), &netns, asking(false)).await.unwrap();
        let short = ask(&netns, "big", RecordType::A);
        assert!(short.truncation && (20..40).contains(&short.answers.len()));
        assert_eq!(addresses(&ask_tcp(&netns, "big", RecordType::A)).len(), 200);
        dns.stop_all().await;
    });
}

#[test]
fn a_c_library_finds_names() {
    on_own_host("serving::a_c_library_finds_names", async |_world| {
        if run_quietly("getent", &["hosts", "localhost"]).is_err() {
            assert!(std::env::var("SKEP_REQUIRE_REAL").is_err(), "needs getent");
            eprintln!("SKIPPED: needs getent");
            return;
        }
        let (dns, netns) = (dns(), namespace(1));
        dns.serve(&task_id(1), &netns, asking(false)).await.unwrap();
        // Libraries look for addresses of the kinds only that the machine itself has.
        sh("ip -n task1 addr add 10.0.1.9/24 dev eth0; ip -n task1 addr add fd00::9/64 dev eth0 nodad; ip -n task1 link set eth0 up");
        sh("echo 'nameserver 127.0.0.11\noptions ndots:0' > /run/resolv.conf; mount --bind /run/resolv.conf \"$(readlink -f /etc/resolv.conf)\"
            echo 'hosts: files dns' > /run/nsswitch.conf; mount --bind /run/nsswitch.conf /etc/nsswitch.conf");
        let getent = |rest: &str| sh(&format!("nsenter --net={} getent {rest}", netns.display()));
        assert!(getent("ahostsv4 web").contains(WEB));
        assert!(getent("ahostsv6 web.front").contains("fd00::250"));
        assert!(getent(&format!("hosts {WEB}")).contains("web.front"));
        // Two hundred addresses: cut over UDP, asked for again over TCP.
        assert_eq!(getent("ahostsv4 big").lines().filter(|line| line.contains("STREAM")).count(), 200);
        let missing = run_quietly("nsenter", &[&format!("--net={}", netns.display()), "getent", "hosts", "nobody"]);
        assert!(missing.is_err());
        dns.stop_all().await;
    });
}

#[test]
fn nothing_is_left_when_it_ends() {
    on_own_host("serving::nothing_is_left_when_it_ends", async |_world| {
        let dns = dns();
        for number in 1..=3 {
            let netns = namespace(number);
            dns.serve(&task_id(number), &netns, asking(true)).await.unwrap();
            assert_eq!(addresses(&ask(&netns, "web", RecordType::A)), [WEB]);
            sh(&format!("ip netns del task{number}"));
        }
        assert!(has_link(1) && has_link(2) && has_link(3), "the servers' sockets hold the namespaces");
        dns.stop(&task_id(1)).await;
        dns.stop(&task_id(1)).await;
        eventually("the namespace of the first task is gone", || !has_link(1));
        assert!(has_link(2) && has_link(3));
        dns.stop_all().await;
        eventually("all namespaces are gone", || !has_link(2) && !has_link(3));
        // And without being told: who drops it ends it.
        let netns = namespace(4);
        let second = crate::tools::dns();
        second.serve(&task_id(4), &netns, asking(true)).await.unwrap();
        sh("ip netns del task4");
        drop(second);
        eventually("the namespace of the fourth task is gone", || !has_link(4));
    });
}

#[test]
fn a_restart_is_a_wait_for_the_task_and_no_error() {
    on_own_host("serving::a_restart_is_a_wait_for_the_task_and_no_error", async |_world| {
        let netns = namespace(1);
        let first = dns();
        first.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        let socket = client(&netns);
        socket.send(&query(1, "web", RecordType::A)).unwrap();
        assert_eq!(addresses(&receive(&socket)), [WEB]);
        first.stop_all().await;
        // Nobody listens: a program that asks now hears nothing, rather than that its server is gone, and asks again.
        socket.send(&query(2, "web", RecordType::A)).unwrap();
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut [0; 99]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        socket.set_nonblocking(false).unwrap();
        let second = dns();
        second.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        socket.send(&query(3, "web", RecordType::A)).unwrap();
        let answer = receive(&socket);
        assert_eq!((answer.id, addresses(&answer)), (3, vec![WEB.to_owned()]));
        second.stop_all().await;
    });
}

#[test]
fn port_53_is_led_back_after_the_task_flushed_its_tables() {
    on_own_host("serving::port_53_is_led_back_after_the_task_flushed_its_tables", async |_world| {
        let (dns, netns) = (dns(), namespace(1));
        dns.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        sh(&format!("nsenter --net={} nft flush ruleset", netns.display()));
        dns.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        assert_eq!(addresses(&ask(&netns, "web", RecordType::A)), [WEB]);
        // The task's own tables are its own, and its own connection tracking sees one flow.
        sh(&format!(
            "nsenter --net={} nft 'add table ip own; add chain ip own c {{ type filter hook input priority 0; }}; add rule ip own c ct state invalid drop;
             add rule ip own c udp sport 53 ct state new drop'",
            netns.display()
        ));
        assert_eq!(addresses(&ask(&netns, "web", RecordType::A)), [WEB]);
        assert_eq!(addresses(&ask_tcp(&netns, "web", RecordType::A)), [WEB]);
        dns.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        assert!(sh(&format!("nsenter --net={} nft list tables", netns.display())).contains("own"));
        // A namespace made anew under the same name gets a server of its own.
        sh("ip netns del task1; ip link del link1");
        let again = namespace(1);
        dns.serve(&task_id(1), &again, asking(true)).await.unwrap();
        assert_eq!(addresses(&ask(&again, "web", RecordType::A)), [WEB]);
        dns.stop_all().await;
    });
}

#[test]
fn a_task_reaches_another_by_its_name() {
    on_own_host("serving::a_task_reaches_another_by_its_name", async |mut world| {
        let (netlb, plain) = (World::netlb(), network(2, false));
        let tasks: Vec<_> = (1..=2).map(|number| task(number, vec![attach(&plain, 10 + number)])).collect();
        let asking = netlb.ensure_task(tasks[0].clone()).await.unwrap().path;
        let answering = netlb.ensure_task(tasks[1].clone()).await.unwrap().path;
        world.respond(&answering, "T2");
        netlb.set_wanted(wanted(std::slice::from_ref(&plain), &tasks, vec![]));
        netlb.applied().await.unwrap();
        let dns = dns();
        let mut names = NetworkNames::new(&plain.name, plain.subnets.iter().map(|subnet| subnet.range).collect());
        names.set_task(TaskNames {
            id: tasks[1].task.clone(),
            service: None,
            slot: None,
            name: "second".into(),
            hostnames: vec![],
            addresses: tasks[1].attachments[0].addresses.iter().map(|address| address.addr()).collect(),
            readiness: Readiness::Ready,
        });
        dns.change_names(|all| all.replace(plain.id.clone(), names));
        dns.serve(&tasks[0].task, &asking, Asking::new(Asker::on(&tasks[0]))).await.unwrap();
        for (kind, seen) in [(RecordType::A, "T2 saw 10.0.2.11"), (RecordType::AAAA, "T2 saw fd00:0:0:2::b")] {
            let found = addresses(&ask(&asking, "second", kind));
            assert_eq!(within(&asking, || tcp(&found[0], 80)).unwrap(), seen);
        }
        dns.stop(&tasks[0].task).await;
        netlb.remove_task(tasks[0].task.clone()).await.unwrap();
        assert!(!asking.exists());
    });
}
