//! Host ports, virtual addresses, internal networks, several networks and instances; against the real kernel.

mod support;

use skep_netlb::*;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};
use support::*;

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

fn host_port(port: u16, task: &TaskNetwork, address: Option<&str>) -> PublishedPort {
    let network = task.attachments[0].network.id.clone();
    let place = address.map_or(PublishPlace::Everywhere, |address| PublishPlace::Address(address.parse().unwrap()));
    let mode = PublishMode::Host { network, backends: backends(std::slice::from_ref(task), 80) };
    PublishedPort { place, ..PublishedPort::new(Protocol::Tcp, port, mode) }
}

#[test]
fn a_host_port_leads_to_its_task_on_any_network() {
    on_own_host("a_host_port_leads_to_its_task_on_any_network", async |mut world| {
        sh("ip addr add 198.18.0.2/24 dev up0");
        let netlb = World::netlb();
        let plain = network(2, false);
        let first = task(1, vec![attach(&plain, 11)]);
        let path = netlb.ensure_task(first.clone()).await.unwrap().path;
        world.respond(&path, "T1");
        let everywhere = host_port(81, &first, None);
        let ports = vec![everywhere, host_port(82, &first, Some("198.18.0.2")), host_port(83, &first, Some(HOST6))];
        netlb.set_wanted(wanted(&[plain], &[first], ports));
        netlb.applied().await.unwrap();
        let client = World::client();
        let ask = |to: &'static str, port| within(&client, || tcp(to, port));
        assert_eq!(ask(HOST, 81).unwrap(), format!("T1 saw {CLIENT}"));
        assert_eq!(ask(HOST6, 81).unwrap(), format!("T1 saw {CLIENT6}"));
        assert_eq!(ask("198.18.0.2", 82).unwrap(), format!("T1 saw {CLIENT}"));
        assert!(ask(HOST, 82).unwrap_err().contains("refused"));
        assert_eq!(ask(HOST6, 83).unwrap(), format!("T1 saw {CLIENT6}"));
        assert_eq!(tcp("127.0.0.1", 81).unwrap(), "T1 saw 169.254.64.1");
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}

#[test]
fn a_host_port_resets_what_it_had_when_its_task_is_gone() {
    on_own_host("a_host_port_resets_what_it_had_when_its_task_is_gone", async |mut world| {
        let netlb = World::netlb();
        let tasks: Vec<TaskNetwork> = (2..=3).map(|number| task(number, vec![attach(&network(number, false), 11)])).collect();
        let networks = [network(2, false), network(3, false)];
        for (task, name) in tasks.iter().zip(["T2", "T3"]) {
            let path = netlb.ensure_task(task.clone()).await.unwrap().path;
            world.respond(&path, name);
        }
        netlb.set_wanted(wanted(&networks, &tasks, vec![host_port(82, &tasks[0], None), host_port(83, &tasks[1], None)]));
        netlb.applied().await.unwrap();
        let client = World::client();
        let open = |to: &str, port| {
            let mut stream = within(&client, || connect(to, port).unwrap());
            stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
            assert!(patiently(|| stream.read(&mut [0; 200])).unwrap() > 0, "who answers greets");
            stream
        };
        let stays = [HOST, HOST6].map(|to| open(to, 83));
        // Who answers repeats one word.
        let [drains, ends] = [(), ()].map(|()| [HOST, HOST6].map(|to| open(to, 82)));
        // First the port, as when a task is to stop: what it has it keeps.
        netlb.set_wanted(wanted(&networks, &tasks, vec![host_port(83, &tasks[1], None)]));
        netlb.applied().await.unwrap();
        drains.iter().for_each(|stream| says(stream).unwrap());
        // The program does not say that it ends, as that of a task that is killed with its namespace.
        sh(&format!("nsenter --net={} ip link del eth0", netlb.task_path(&tasks[0].task).display()));
        netlb.remove_task(tasks[0].task.clone()).await.unwrap();
        netlb.set_wanted(wanted(&networks[1..], &tasks[1..], vec![host_port(83, &tasks[1], None)]));
        netlb.applied().await.unwrap();
        for stream in &ends {
            assert_eq!(says(stream).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
        stays.iter().for_each(|stream| says(stream).unwrap());
        // The kernel takes a namespace away when it has time for that: until then the host's end of its cable may be seen.
        let start = Instant::now();
        while sh("ip -br link").contains(&format!("{:x}@", networks[0].vni)) && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}

/// Whether who answers repeats a word.
fn says(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"still")?;
    stream.read_exact(&mut [0; 5])
}

#[test]
fn tasks_are_reached_by_published_ports_only() {
    on_own_host("tasks_are_reached_by_published_ports_only", async |mut world| {
        let netlb = World::netlb();
        let (ingress, mut tasks) = three_tasks(&mut world, &netlb).await;
        let other = network(2, false);
        let stranger = task(9, vec![attach(&other, 99)]);
        let path = netlb.ensure_task(stranger.clone()).await.unwrap().path;
        tasks.push(stranger);
        netlb.set_wanted(wanted(&[ingress, other], &tasks, vec![ingress_port(Protocol::Tcp, 8080, &tasks[..3])]));
        netlb.applied().await.unwrap();
        // The other network's task knows the way and is not let in, nor is a neighbour of the host that made a route.
        assert!(!within(&path, || answers_soon("10.0.1.11", 80)));
        assert!(!within(&path, || answers_soon("fd00:0:0:1::b", 80)));
        sh("ip -n client route add 10.0.1.0/24 via 198.18.0.1; ip -n client route add fd00:0:0:1::/64 via 2001:db8::1");
        let client = World::client();
        assert!(!within(&client, || answers_soon("10.0.1.11", 80)));
        assert!(!within(&client, || answers_soon("fd00:0:0:1::b", 80)));
        // Both reach the published port.
        all_three_answer("169.254.64.1", || within(&path, || tcp(HOST, 8080)));
        all_three_answer(CLIENT, || within(&client, || tcp(HOST, 8080)));
    });
}

#[test]
fn an_internal_network_is_closed_and_its_tasks_reach_each_other() {
    on_own_host("an_internal_network_is_closed_and_its_tasks_reach_each_other", async |mut world| {
        let netlb = World::netlb();
        let closed = Network { internal: true, ..network(3, false) };
        let tasks: Vec<_> = (1..=2).map(|n| task(n, vec![attach(&closed, 10 + n)])).collect();
        for (index, task) in tasks.iter().enumerate() {
            let path = netlb.ensure_task(task.clone()).await.unwrap().path;
            world.respond(&path, &format!("T{}", index + 1));
        }
        netlb.set_wanted(wanted(&[closed], &tasks, vec![]));
        netlb.applied().await.unwrap();
        let path = netlb.task_path(&tasks[0].task);
        assert_eq!(within(&path, || tcp("10.0.3.12", 80)).unwrap(), "T2 saw 10.0.3.11");
        assert_eq!(within(&path, || tcp("fd00:0:0:3::c", 80)).unwrap(), "T2 saw fd00:0:0:3::b");
        assert!(within(&path, || tcp(CLIENT, 80)).unwrap_err().contains("unreachable"));
        assert!(within(&path, || tcp(HOST6, 80)).unwrap_err().contains("unreachable"));
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}

#[test]
fn a_virtual_address_leads_to_every_backend_and_to_oneself() {
    on_own_host("a_virtual_address_leads_to_every_backend_and_to_oneself", async |mut world| {
        let netlb = World::netlb();
        let (ingress, tasks) = three_tasks(&mut world, &netlb).await;
        let outsider = task(9, vec![attach(&ingress, 99)]);
        let outside = netlb.ensure_task(outsider.clone()).await.unwrap().path;
        let mut all = tasks.clone();
        all.push(outsider);
        let mut want = wanted(&[ingress], &all, vec![]);
        let of = |v4: bool| -> Vec<IpAddr> {
            let every = backends(&tasks, 80).into_iter().map(|backend| backend.address);
            every.filter(|address| address.is_ipv4() == v4).collect()
        };
        want.networks[0].vips = vec![
            Vip { address: "10.0.1.100".parse().unwrap(), backends: of(true) },
            Vip { address: "fd00:0:0:1::100".parse().unwrap(), backends: of(false) },
        ];
        netlb.set_wanted(want);
        netlb.applied().await.unwrap();
        all_three_answer("10.0.1.99", || within(&outside, || tcp("10.0.1.100", 80)));
        all_three_answer("fd00:0:0:1::63", || within(&outside, || tcp("fd00:0:0:1::100", 80)));
        all_three_answer("10.0.1.99", || within(&outside, || udp("10.0.1.100", 80)));
        let first = netlb.task_path(&tasks[0].task);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            seen.insert(within(&first, || tcp("10.0.1.100", 80)).unwrap());
            seen.insert(within(&first, || tcp("fd00:0:0:1::100", 80)).unwrap());
        }
        let expected = ["T1 saw 10.0.1.1", "T1 saw fd00:0:0:1::1", "T2 saw 10.0.1.11", "T2 saw fd00:0:0:1::b"];
        for line in expected {
            assert!(seen.contains(line), "{line} is not in {seen:?}");
        }
        assert_eq!(seen.len(), 6);
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}

#[test]
fn a_task_on_two_networks_answers_on_the_one_it_was_asked_on() {
    on_own_host("a_task_on_two_networks_answers_on_the_one_it_was_asked_on", async |mut world| {
        let netlb = World::netlb();
        let (ingress, plain) = (network(1, true), network(2, false));
        let both = task(1, vec![attach(&plain, 11), attach(&ingress, 11)]);
        let peer = task(2, vec![attach(&plain, 12)]);
        let path = netlb.ensure_task(both.clone()).await.unwrap().path;
        world.respond(&path, "both");
        let peer_path = netlb.ensure_task(peer.clone()).await.unwrap().path;
        let on_ingress = task(1, vec![both.attachments[1].clone()]);
        let mut ports = vec![ingress_port(Protocol::Tcp, 80, std::slice::from_ref(&on_ingress))];
        ports.push(ingress_port(Protocol::Udp, 80, &[on_ingress]));
        ports.push(host_port(81, &both, None));
        netlb.set_wanted(wanted(&[ingress, plain], &[both, peer], ports));
        netlb.applied().await.unwrap();
        let client = World::client();
        assert_eq!(within(&client, || tcp(HOST, 80)).unwrap(), format!("both saw {CLIENT}"));
        assert_eq!(within(&client, || udp(HOST, 80)).unwrap(), format!("both saw {CLIENT}"));
        assert_eq!(within(&client, || udp(HOST6, 80)).unwrap(), format!("both saw {CLIENT6}"));
        assert_eq!(within(&client, || tcp(HOST, 81)).unwrap(), format!("both saw {CLIENT}"));
        assert_eq!(within(&client, || tcp(HOST6, 81)).unwrap(), format!("both saw {CLIENT6}"));
        assert_eq!(within(&peer_path, || udp("10.0.2.11", 80)).unwrap(), "both saw 10.0.2.12");
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}

/// A sandbox sends redirects while nodes differ about where a task is (`reuse.rs`).
#[test]
fn no_task_takes_redirects() {
    on_own_host("no_task_takes_redirects", async |_world| {
        ip(&[], "netns add theirs");
        let (netlb, network) = (World::netlb(), network(2, false));
        let ours = netlb.ensure_task(task(1, vec![attach(&network, 11)])).await.unwrap().path;
        let theirs = TaskNetwork { foreign: Some("/run/netns/theirs".into()), ..task(2, vec![attach(&network, 12)]) };
        let theirs = netlb.ensure_task(theirs).await.unwrap().path;
        for (whose, path, link) in [("ours", ours, "eth0"), ("theirs", theirs, "t0*2")] {
            let takes = within(&path, || sh(&format!("cat /proc/sys/net/ipv6/conf/{link}/accept_redirects")));
            assert_eq!(takes.trim(), "0", "{whose}");
        }
    });
}

#[test]
fn two_instances_share_a_host_and_a_foreign_firewall() {
    on_own_host("two_instances_share_a_host_and_a_foreign_firewall", async |mut world| {
        sh(
            "nft 'add table inet foreign; add chain inet foreign c { type filter hook input priority 0; }; add rule inet foreign c counter'",
        );
        let netlb = World::netlb();
        three_tasks(&mut world, &netlb).await;
        let second = Netlb::start(Config { run_dir: "/run/other".into(), instance: "/run/other".into(), ..World::config() }).unwrap();
        let ingress = network(1, true); // the same numbers: another cluster's
        let ingress = Network { subnets: network(7, true).subnets, ..ingress };
        let mut lone = task(1, vec![attach(&ingress, 11)]);
        lone.attachments[0].addresses = attach(&network(7, true), 11).addresses;
        let path = second.ensure_task(lone.clone()).await.unwrap().path;
        world.respond(&path, "other");
        second.set_wanted(wanted(&[ingress], &[lone.clone()], vec![ingress_port(Protocol::Tcp, 9090, &[lone])]));
        second.applied().await.unwrap();
        let client = World::client();
        assert_eq!(within(&client, || tcp(HOST, 9090)).unwrap(), format!("other saw {CLIENT}"));
        all_three_answer(CLIENT, || within(&client, || tcp(HOST, 8080)));
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        assert_eq!(second.audit().await.unwrap(), Audit::default());
        second.remove_everything().await.unwrap();
        assert!(within(&client, || tcp(HOST, 9090)).unwrap_err().contains("refused"));
        all_three_answer(CLIENT, || within(&client, || tcp(HOST, 8080)));
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        assert!(sh("nft list table inet foreign").contains("counter"));
    });
}

#[test]
fn what_cannot_be_done_is_said_and_the_rest_is_done() {
    on_own_host("what_cannot_be_done_is_said_and_the_rest_is_done", async |mut world| {
        let netlb = World::netlb();
        let (ingress, tasks) = three_tasks(&mut world, &netlb).await;
        let mut want = wanted(&[ingress], &tasks, vec![ingress_port(Protocol::Tcp, 8081, &tasks)]);
        let node = |index: u8, underlay: &str| Peer {
            node_index: u32::from(index),
            underlay: underlay.parse().unwrap(),
            mac: Mac([2, 0, 0, 0, 0, index]),
        };
        want.networks[0].overlay = Some(Overlay { this: node(1, HOST), port: 4789, peers: vec![node(2, "2001:db8::7")] });
        netlb.set_wanted(want.clone());
        let error = netlb.applied().await.unwrap_err().to_string();
        assert!(error.contains("network net1 cannot span nodes as asked: node 2 has the address 2001:db8::7"), "{error}");
        all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8081)));
        want.networks[0].overlay = None;
        netlb.set_wanted(want);
        netlb.applied().await.unwrap();
        let mut double = task(7, vec![attach(&network(2, false), 7)]);
        double.attachments[0].addresses.push("10.0.2.8/24".parse().unwrap());
        assert!(matches!(netlb.ensure_task(double).await, Err(NetlbError::TwoAddresses { .. })));
        assert!(matches!(netlb.remove_task(skep_types::TaskId::for_test(404)).await, Ok(())));
    });
}

#[test]
fn a_task_removed_while_it_is_made_leaves_nothing() {
    on_own_host("a_task_removed_while_it_is_made_leaves_nothing", async |_world| {
        let netlb = World::netlb();
        let plain = network(2, false);
        netlb.set_wanted(Wanted::default());
        for round in 0..10 {
            let wish = task(1, vec![attach(&plain, 11)]);
            let (making, removing, again) = tokio::join!(netlb.ensure_task(wish.clone()), netlb.remove_task(wish.task.clone()), async {
                if round % 2 == 0 { Some(netlb.ensure_task(wish.clone()).await) } else { None }
            });
            removing.unwrap();
            // The three may be taken in any order with the namespace's maker; the one asked for last is there.
            assert!(again.is_none_or(|again| again.unwrap().path.exists()));
            assert!(matches!(making, Ok(_) | Err(NetlbError::Shared(_))), "{making:?}");
            netlb.remove_task(wish.task.clone()).await.unwrap();
            assert_eq!(sh("ls /run/skep/netns"), "", "the sandbox is gone too");
        }
    });
}

#[test]
fn a_host_without_ipv6_has_its_ipv4() {
    on_own_host("a_host_without_ipv6_has_its_ipv4", async |mut world| {
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        let netlb = World::netlb();
        let (_, tasks) = three_tasks(&mut world, &netlb).await;
        all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
        all_three_answer("169.254.64.1", || tcp("127.0.0.1", 8080));
        let path = netlb.task_path(&tasks[0].task);
        let path = path.display();
        assert_eq!(sh(&format!("nsenter --net={path} ip -6 addr show dev eth0")), "");
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}

#[test]
fn a_task_cannot_speak_for_another() {
    on_own_host("a_task_cannot_speak_for_another", async |_world| {
        let netlb = World::netlb();
        let ingress = network(1, true);
        let mut paths = Vec::new();
        for number in 1..=2 {
            paths.push(netlb.ensure_task(task(number, vec![attach(&ingress, 10 + number)])).await.unwrap().path);
        }
        let liar = paths[0].display();
        sh(&format!(
            "nsenter --net={liar} ip addr add 10.0.1.13/32 dev lo; nsenter --net={liar} ip addr add fd00:0:0:1::d/128 dev lo nodad"
        ));
        for (to, own, others) in [("10.0.1.12", "10.0.1.11", "10.0.1.13"), ("fd00:0:0:1::c", "fd00:0:0:1::b", "fd00:0:0:1::d")] {
            let to: IpAddr = to.parse().unwrap();
            let listener = within(&paths[1], || std::net::UdpSocket::bind((to, 99)).unwrap());
            listener.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
            for from in [others, own] {
                let from: IpAddr = from.parse().unwrap();
                within(&paths[0], || {
                    // An address is usable a moment after the kernel took it.
                    let socket = (0..6_000).find_map(|_| {
                        let bound = std::net::UdpSocket::bind((from, 0)).ok();
                        bound.or_else(|| {
                            std::thread::sleep(std::time::Duration::from_millis(10));
                            None
                        })
                    });
                    socket.expect("the address can be bound").send_to(b"hello", (to, 99)).unwrap()
                });
            }
            let heard = patiently(|| listener.recv_from(&mut [0; 9])).unwrap().1;
            assert_eq!(heard.ip().to_string(), own, "what it said as another was not heard before");
        }
    });
}

/// Asks over and over with the same socket, as a client that keeps its port does.
struct Udp(std::net::UdpSocket);

impl Udp {
    fn from_client(to: &str, port: u16) -> Self {
        let to: IpAddr = to.parse().unwrap();
        let socket = within(&World::client(), || std::net::UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap());
        socket.connect((to, port)).unwrap();
        Self(socket)
    }

    /// Who answered.
    fn ask(&self) -> Option<String> {
        self.ask_for(std::time::Duration::from_secs(60))
    }

    /// Whether nobody answers in a time that is long for an answer.
    fn is_not_answered(&self) -> bool {
        self.ask_for(std::time::Duration::from_millis(700)).is_none()
    }

    fn ask_for(&self, patience: std::time::Duration) -> Option<String> {
        self.0.set_read_timeout(Some(patience)).unwrap();
        let _ = self.0.send(b"hello");
        let mut buffer = [0; 99];
        let length = patiently(|| self.0.recv(&mut buffer)).ok()?;
        String::from_utf8_lossy(&buffer[..length]).split(' ').next().map(str::to_owned)
    }
}

#[test]
fn a_udp_client_that_keeps_its_port_is_led_on_when_its_backend_goes() {
    on_own_host("a_udp_client_that_keeps_its_port_is_led_on_when_its_backend_goes", async |mut world| {
        let netlb = World::netlb();
        let (ingress, tasks) = three_tasks(&mut world, &netlb).await;
        for host in [HOST, HOST6] {
            let early = Udp::from_client(host, 9000);
            assert!(early.is_not_answered(), "nothing is published there yet");
            let want = |tasks: &[TaskNetwork]| {
                let ports = vec![ingress_port(Protocol::Udp, 8080, tasks), ingress_port(Protocol::Udp, 9000, &tasks[..1])];
                wanted(&[ingress.clone()], tasks, ports)
            };
            netlb.set_wanted(want(&tasks));
            netlb.applied().await.unwrap();
            assert!(early.ask().is_some(), "{host}: it need not wait for a time-out");
            let client = Udp::from_client(host, 8080);
            let first = client.ask().unwrap();
            assert_eq!(client.ask().as_ref(), Some(&first), "a flow stays where it is");
            let rest: Vec<_> = tasks.iter().enumerate().filter(|(n, _)| format!("T{}", n + 1) != first).map(|(_, t)| t.clone()).collect();
            netlb.set_wanted(want(&rest));
            netlb.applied().await.unwrap();
            let second = client.ask().expect("led on at once");
            assert_ne!(second, first);
            netlb.set_wanted(want(&tasks));
            netlb.applied().await.unwrap();
            assert_eq!(client.ask(), Some(second), "and left alone when others come");
            netlb.set_wanted(wanted(&[ingress.clone()], &tasks, vec![]));
            netlb.applied().await.unwrap();
            assert!(client.is_not_answered(), "not published any more");
        }
    });
}

/// On the hosts' own network by the uplink; the client is its router.
fn lan(last: u8) -> Lan {
    let subnet = |range: &str, gateway: &str| Subnet { range: range.parse().unwrap(), gateway: gateway.parse().unwrap() };
    Lan {
        network: skep_types::NetworkId::for_test(70),
        name: "lan".into(),
        parent: "up0".into(),
        mode: LanMode::Bridge,
        subnets: vec![subnet("198.18.0.0/24", CLIENT), subnet("2001:db8::/64", CLIENT6)],
        mtu: None,
        internal: false,
        addresses: vec![format!("198.18.0.{last}/24").parse().unwrap(), format!("2001:db8::{last:x}/64").parse().unwrap()],
    }
}

#[test]
fn a_task_is_on_the_host_s_own_network_as_a_host_is() {
    on_own_host("a_task_is_on_the_host_s_own_network_as_a_host_is", async |mut world| {
        let netlb = World::netlb();
        let ours = network(2, false);
        let first = TaskNetwork { lans: vec![lan(21)], ..task(1, vec![attach(&ours, 11)]) };
        let second = TaskNetwork { lans: vec![lan(22)], ..task(2, vec![]) };
        let mut paths = Vec::new();
        for (task, name) in [(&first, "T1"), (&second, "T2")] {
            paths.push(netlb.ensure_task(task.clone()).await.unwrap().path);
            world.respond(paths.last().unwrap(), name);
        }
        let tasks = [first.clone(), second.clone()];
        netlb.set_wanted(wanted(&[ours], &tasks, vec![]));
        netlb.applied().await.unwrap();
        // Nothing stands between: who asks is seen as who he is, and each reaches the other.
        let client = World::client();
        assert_eq!(within(&client, || tcp("198.18.0.21", 80)).unwrap(), format!("T1 saw {CLIENT}"));
        assert_eq!(within(&client, || tcp("2001:db8::16", 80)).unwrap(), format!("T2 saw {CLIENT6}"));
        assert_eq!(within(&paths[0], || tcp("198.18.0.22", 80)).unwrap(), "T2 saw 198.18.0.21");
        // Its way out is that network's router.
        sh("ip -n client addr add 203.0.113.7/32 dev lo; ip -n client addr add 2001:db8:7::7/128 dev lo nodad");
        world.respond(&client, "far");
        assert_eq!(within(&paths[0], || tcp("203.0.113.7", 80)).unwrap(), "far saw 198.18.0.21");
        assert_eq!(within(&paths[1], || tcp("2001:db8:7::7", 80)).unwrap(), "far saw 2001:db8::16");
        world.stop_last_responder();
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        let mac = sh("ip -n client neigh show 198.18.0.21");
        assert!(mac.contains("02:53:c6:12:00:15"), "{mac}");

        // A link of the host that goes and comes back: the task is on it again.
        sh(&format!("nsenter --net={} ip link del eth0", paths[1].display()));
        assert!(!within(&client, || answers_soon("198.18.0.22", 80)));
        assert!(!netlb.audit().await.unwrap().repaired.is_empty());
        assert_eq!(within(&client, || tcp("198.18.0.22", 80)).unwrap(), format!("T2 saw {CLIENT}"));

        // What this host cannot do is said; nothing is left of the attempt.
        let failed = async |wish: Lan| {
            let wish = TaskNetwork { lans: vec![wish], ..task(3, vec![]) };
            let error = netlb.ensure_task(wish.clone()).await.unwrap_err().to_string();
            assert!(!netlb.task_path(&wish.task).exists());
            error
        };
        let error = failed(Lan { parent: "nosuch0".into(), ..lan(23) }).await;
        assert!(error.contains("network lan cannot be joined by link nosuch0 of this host: this host has no such link"), "{error}");
        let error = failed(Lan { mtu: Some(9000), ..lan(23) }).await;
        assert!(error.contains("its packets have 1500 bytes at most, not 9000"), "{error}");

        // Nothing is left of tasks that are gone.
        world.stop_responders();
        for task in &tasks {
            netlb.remove_task(task.task.clone()).await.unwrap();
        }
        netlb.set_wanted(Wanted::default());
        netlb.applied().await.unwrap();
        eventually("the kernel took the namespaces away", || {
            !sh("ip -br link").contains("1002@") && !within(&client, || answers_soon("198.18.0.21", 80))
        });
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}
