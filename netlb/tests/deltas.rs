//! Changes told one by one lead to what a fresh start makes of the whole; many networks, and restarts under connections.

#[path = "support/hosts.rs"]
mod hosts;
mod support;

use hosts::kernel_has_overlays;
use skep_netlb::*;
use skep_types::{NetworkId, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use support::*;

/// What is left of networks, without what the kernel does with the uplink meanwhile.
const STATE: &str = "ip -o link | cut -d: -f2; ip route; ip rule; nft list ruleset; ls /run/skep/netns 2>/dev/null || true";

/// Of this number, so that a test may have more than 255.
fn numbered(number: u16) -> Network {
    let [high, low] = number.to_be_bytes();
    let subnet = Subnet { range: format!("10.{high}.{low}.0/24").parse().unwrap(), gateway: IpAddr::from([10, high, low, 1]) };
    Network {
        id: NetworkId::for_test(1_000 + u64::from(number)),
        name: format!("net{number}"),
        vni: 8_192 + u32::from(number),
        subnets: vec![subnet],
        ..network(1, false)
    }
}

/// What is wanted as it goes along, beside the changes that say so.
struct Story {
    wanted: Wanted,
    /// Numbers that look drawn and are the same each time.
    state: u64,
}

fn node(index: u8) -> Peer {
    Peer { node_index: u32::from(index), underlay: IpAddr::from([198, 18, 0, index]), mac: Mac([2, 0xab, 0, 0, 0, index]) }
}

fn addresses(network: usize, last: u64) -> Vec<IpAddr> {
    let (network, last) = (u8::try_from(network + 1).unwrap(), u8::try_from(last).unwrap());
    vec![IpAddr::from([10, 0, network, last]), IpAddr::from([0xfd00, 0, 0, u16::from(network), 0, 0, 0, u16::from(last)])]
}

impl Story {
    fn new() -> Self {
        let mut wanted = wanted(&[network(1, true), network(2, false)], &[], vec![]);
        for network in &mut wanted.networks {
            network.overlay = Some(Overlay { this: node(1), port: 4789, peers: vec![node(2), node(3)] });
        }
        Self { wanted, state: 1 }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    /// Some tasks' addresses on that network.
    fn some(&mut self, network: usize, count: u64) -> BTreeSet<IpAddr> {
        (0..count).flat_map(|_| addresses(network, 10 + self.draw(12))).collect()
    }

    /// One more change, and what it is.
    fn next(&mut self) -> Delta {
        let (network, number) = (usize::try_from(self.draw(2)).unwrap(), 10 + self.draw(12));
        let (what, count) = (self.draw(4), self.draw(4));
        let id = self.wanted.networks[network].network.id.clone();
        let members = |endpoints, vips| Delta { networks: [(id, NetworkDelta::Members { endpoints, vips })].into(), ..Delta::default() };
        match what {
            0 | 1 => {
                let task = TaskId::for_test(number);
                // Nodes 2 and 3 are peers, 4 is none.
                let location = Location::Remote { node_index: 2 + u32::try_from(self.draw(3)).unwrap() };
                let known = &mut self.wanted.networks[network].endpoints;
                known.retain(|endpoint| endpoint.task != task);
                let one = (what == 0).then(|| Endpoint { task: task.clone(), addresses: addresses(network, number), location });
                known.extend(one.clone());
                members([(task, one)].into(), BTreeMap::new())
            }
            2 => {
                let address = addresses(network, 100 + number % 3)[usize::from(number % 2 == 0)];
                let backends = self.some(network, count).into_iter().filter(|backend| backend.is_ipv4() == address.is_ipv4());
                let one: Option<Vec<IpAddr>> = Some(backends.collect()).filter(|_| count > 0);
                let known = &mut self.wanted.networks[network].vips;
                known.retain(|vip| vip.address != address);
                known.extend(one.clone().map(|backends| Vip { address, backends }));
                members(BTreeMap::new(), [(address, one)].into())
            }
            _ => {
                let protocol = if number % 2 == 0 { Protocol::Tcp } else { Protocol::Udp };
                let port = 8080 + u16::try_from(number % 3).unwrap();
                let backends = self.some(0, count).into_iter().map(|address| Backend { address, port: 80 }).collect();
                let one = (count > 0).then(|| PublishedPort::new(protocol, port, PublishMode::Ingress { backends }));
                self.wanted.published.retain(|known| (known.protocol, known.port) != (protocol, port));
                self.wanted.published.extend(one.clone());
                Delta { published: [((protocol, port), one.into_iter().collect())].into(), ..Delta::default() }
            }
        }
    }
}

/// What the kernel has, without what means nothing: in which slot a backend is, and chains to which nothing leads.
fn kernel() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut places = vec![String::new()];
    places.extend(sh("ls /run/skep/netns").lines().map(|file| format!("nsenter --net=/run/skep/netns/{file} ")));
    for place in places {
        // What netlb puts there; the kernel has more of its own, with addresses it draws.
        let ours = [
            ("ip -4 route show table all proto 83", ""),
            ("ip -6 route show table all proto 83", ""),
            ("ip rule", "proto 83"),
            ("ip nexthop", ""),
            ("ip neigh", "PERMANENT"),
            ("bridge fdb", " dst "),
        ];
        for (command, mark) in ours {
            let lines = sh(&format!("{place}{command}"));
            found.extend(lines.lines().filter(|line| line.contains(mark)).map(|line| format!("{place}{command}: {}", line.trim())));
        }
        // Elements of maps: `key . slot : backend`. There is a chain per count of backends, which stays when nobody has that many.
        let rules = sh(&format!("{place}nft -n list ruleset")).replace("elements = {", "elements = {\n");
        for line in rules.split(['\n', ',']).map(str::trim).filter(|line| !line.contains("chain lb") && !line.contains("random mod")) {
            let without_slot = |(key, to): (&str, &str)| Some(format!("{} : {to}", key.rsplit_once(" . 0x")?.0));
            let line = line.split_once(" : ").and_then(without_slot).unwrap_or_else(|| line.to_owned());
            found.insert(format!("{place}nft: {}", line.trim_end_matches(" }")));
        }
    }
    found
}

#[test]
fn changes_lead_to_what_a_fresh_start_makes() {
    on_own_host("changes_lead_to_what_a_fresh_start_makes", async |_world| {
        if !kernel_has_overlays("changes_lead_to_what_a_fresh_start_makes") {
            return;
        }
        let netlb = World::netlb();
        let mut story = Story::new();
        netlb.set_wanted(story.wanted.clone());
        for step in 0..200 {
            netlb.change(story.next());
            // Some are carried out one by one, some as one.
            if step % 3 == 0 {
                netlb.applied().await.unwrap();
            }
        }
        netlb.applied().await.unwrap();
        assert_eq!(netlb.audit().await.unwrap(), Audit::default(), "and the plan of the whole is the same");
        let after_changes = kernel();
        let has = |word: &str| after_changes.iter().any(|line| line.contains(word));
        assert!(has("nhid") && has("8080") && has("10.0.2.10"), "{after_changes:#?}");
        netlb.remove_everything().await.unwrap();
        netlb.set_wanted(story.wanted.clone());
        netlb.applied().await.unwrap();
        let fresh = kernel();
        let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| one.difference(other).cloned().collect::<Vec<_>>();
        assert_eq!((only(&after_changes, &fresh), only(&fresh, &after_changes)), (vec![], vec![]));
        netlb.remove_everything().await.unwrap();
    });
}

#[test]
fn networks_come_and_go_by_changes() {
    on_own_host("networks_come_and_go_by_changes", async |_world| {
        let netlb = World::netlb();
        netlb.set_wanted(Wanted::default());
        netlb.applied().await.unwrap();
        let before = look(STATE);
        let whole = wanted(&[network(3, false)], &[], vec![]).networks.remove(0);
        let id = whole.network.id.clone();
        let says = |change| Delta { networks: [(id.clone(), change)].into(), ..Delta::default() };
        netlb.change(says(NetworkDelta::Whole(whole.clone())));
        netlb.applied().await.unwrap();
        assert!(sh("ls /run/skep/netns").contains("sbx-"), "its sandbox");
        let resized = Network { mtu: 1400, ..whole.network.clone() };
        netlb.change(says(NetworkDelta::Whole(WantedNetwork { network: resized, ..whole })));
        netlb.applied().await.unwrap();
        assert!(sh("ip link").contains("mtu 1400"));
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        netlb.change(says(NetworkDelta::Gone));
        netlb.applied().await.unwrap();
        assert_eq!(sh("ls /run/skep/netns"), "");
        netlb.remove_everything().await.unwrap();
        eventually("nothing of it is left", || look(STATE) == before);
    });
}

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

#[test]
fn connections_to_a_task_that_is_gone_are_forgotten_and_no_others() {
    on_own_host("connections_to_a_task_that_is_gone_are_forgotten_and_no_others", async |mut world| {
        let netlb = World::netlb();
        let net = network(2, false);
        let tasks: Vec<TaskNetwork> = (1..=3).map(|number| task(number, vec![attach(&net, 10 + number)])).collect();
        let mut paths = Vec::new();
        for (task, name) in tasks.iter().zip(["T1", "T2", "client"]) {
            paths.push(netlb.ensure_task(task.clone()).await.unwrap().path);
            world.respond(&paths[paths.len() - 1], name);
        }
        let mut all = wanted(std::slice::from_ref(&net), &tasks, vec![]);
        let vips: [(IpAddr, IpAddr); 2] = [("10.0.2.100", "10.0.2.11"), ("fd00:0:0:2::100", "fd00:0:0:2::b")]
            .map(|(vip, own)| (vip.parse().unwrap(), own.parse().unwrap()));
        all.networks[0].vips = vips.iter().map(|(vip, own)| Vip { address: *vip, backends: vec![*own] }).collect();
        netlb.set_wanted(all);
        netlb.applied().await.unwrap();
        let open = |to: &str| within(&paths[2], || connect(to, 80).unwrap());
        let led: Vec<TcpStream> = vips.iter().map(|(vip, _)| open(&vip.to_string())).collect();
        let direct = open("10.0.2.12");
        // As the kernel prints it: whom the client asked, then who answers.
        let known = || sh(&format!("nsenter --net=/run/skep/netns/sbx-{} cat /proc/self/net/nf_conntrack", net.id));
        let remembered = |what: &str| known().lines().filter(|line| line.contains("tcp") && line.contains(what)).count();
        let ends = ["src=10.0.2.11 ", "dst=10.0.2.12 "];
        assert_eq!(ends.map(remembered), [1, 1], "{}", known());
        let gone = NetworkDelta::Members {
            endpoints: [(tasks[0].task.clone(), None)].into(),
            vips: vips.iter().map(|(vip, _)| (*vip, Some(vec![]))).collect(),
        };
        netlb.change(Delta { networks: [(net.id.clone(), gone)].into(), ..Delta::default() });
        netlb.applied().await.unwrap();
        eventually("what led to the task is forgotten", || ends.map(remembered) == [0, 1]);
        drop((led, direct));
        netlb.remove_everything().await.unwrap();
    });
}

#[test]
fn five_hundred_networks_are_made_and_leave_nothing() {
    on_own_host("five_hundred_networks_are_made_and_leave_nothing", async |_world| {
        const COUNT: u16 = 500;
        let before = look(STATE);
        let netlb = World::netlb();
        let on = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let address = format!("10.{high}.{low}.9/24").parse().unwrap();
            let attachment = Attachment { network: numbered(number), addresses: vec![address], mac: None, link: None };
            TaskNetwork { task: TaskId::for_test(u64::from(number)), attachments: vec![attachment], lans: vec![], foreign: None }
        };
        let tasks: Vec<TaskNetwork> = (0..COUNT).map(on).collect();
        for task in &tasks {
            netlb.ensure_task(task.clone()).await.unwrap();
        }
        let networks: Vec<Network> = (0..COUNT).map(numbered).collect();
        netlb.set_wanted(wanted(&networks, &tasks, vec![]));
        netlb.applied().await.unwrap();
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        assert_eq!(sh("ls /run/skep/netns").lines().count(), usize::from(COUNT) * 2, "a task's and a sandbox's each");
        for task in &tasks {
            netlb.remove_task(task.task.clone()).await.unwrap();
        }
        netlb.set_wanted(Wanted::default());
        netlb.applied().await.unwrap();
        assert_eq!(sh("ls /run/skep/netns"), "");
        netlb.remove_everything().await.unwrap();
        // The kernel takes a thousand namespaces apart one after the other, each in some hundredths of a second.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(300);
        while look(STATE) != before {
            assert!(std::time::Instant::now() < end, "something is left: {}", look(STATE));
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    });
}

/// Not a test: the server of those below, which start it. Echoes on any number of connections.
#[test]
fn echo() {
    if std::env::var("SKEP_NETLB_ECHO").is_err() {
        return;
    }
    let listener = TcpListener::bind("0.0.0.0:80").unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let serve = move || {
            let mut byte = [0];
            while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
        };
        std::thread::Builder::new().stack_size(64 << 10).spawn(serve).unwrap();
    }
}

/// Ends with the test, also if that fails.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The owner ends and begins again while so many connections live, half to a published port, half to a virtual address.
async fn restarts(restarts: u32, connections: u32) {
    let files = u64::from(connections) * 2 + 256;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, files, files).unwrap();
    let ingress = network(1, true);
    let (server, client) = (task(1, vec![attach(&ingress, 11)]), task(2, vec![attach(&ingress, 12)]));
    let port = ingress_port(Protocol::Tcp, 8080, std::slice::from_ref(&server));
    let mut want = wanted(&[ingress], &[server.clone(), client.clone()], vec![port]);
    want.networks[0].vips = vec![Vip { address: "10.0.1.100".parse().unwrap(), backends: vec!["10.0.1.11".parse().unwrap()] }];
    let start = async || {
        let netlb = World::netlb();
        let paths = [netlb.ensure_task(server.clone()).await.unwrap().path, netlb.ensure_task(client.clone()).await.unwrap().path];
        netlb.set_wanted(want.clone());
        netlb.applied().await.unwrap();
        (netlb, paths)
    };
    let (mut netlb, [at_server, at_client]) = start().await;
    let mut echo = std::process::Command::new("nsenter");
    echo.arg(format!("--net={}", at_server.display())).arg(std::env::current_exe().unwrap());
    let _server = Server(echo.args(["--exact", "echo", "--nocapture"]).env("SKEP_NETLB_ECHO", "1").spawn().unwrap());
    let open = |at: &std::path::Path, to: &str, port: u16| -> Vec<TcpStream> {
        eventually("the server listens", || within(at, || answers_soon(to, port)));
        within(at, || (0..connections / 2).map(|_| connect(to, port).unwrap()).collect())
    };
    let mut kept = open(&World::client(), HOST, 8080);
    kept.extend(open(&at_client, "10.0.1.100", 80));
    for restart in 0..restarts {
        drop(netlb);
        // Now and then while nobody looks after it.
        for _ in 0..=restart % 2 {
            kept.iter_mut().for_each(|stream| still_echoes(stream, restart));
        }
        netlb = start().await.0;
    }
    kept.iter_mut().for_each(|stream| still_echoes(stream, restarts));
    assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    netlb.remove_everything().await.unwrap();
}

fn still_echoes(stream: &mut TcpStream, restart: u32) {
    let (said, mut heard) = ([u8::try_from(restart % 251).unwrap()], [0]);
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    stream.write_all(&said).and_then(|()| stream.read_exact(&mut heard)).unwrap_or_else(|error| panic!("restart {restart}: {error}"));
    assert_eq!(heard, said);
}

#[test]
fn restarts_keep_connections() {
    on_own_host("restarts_keep_connections", async |_world| restarts(10, 60).await);
}

#[test]
#[ignore = "three quarters of a minute; the short one is above"]
fn two_hundred_restarts_keep_a_thousand_connections() {
    on_own_host("two_hundred_restarts_keep_a_thousand_connections", async |_world| restarts(200, 1_000).await);
}
