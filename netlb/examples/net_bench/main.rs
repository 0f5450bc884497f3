//! What the network costs, beside what it is made of: `unshare -n -m net_bench churn|connect|overlay|ingress|web ROUNDS`.
//!
//! Prints a line of JSON for each figure: of which round, what, in what unit, whose. `skep-bench` (B8 to B11) makes ratios of them.
//! Hosts are namespaces joined by a veth pair; both ends of all traffic are threads of this process, so its CPU time is all there is.

mod web; // B11 with nginx and haproxy

use nix::sched::{CloneFlags, setns};
use skep_netlb::*;
use skep_types::{NetworkId, TaskId};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SIZES: [u16; 3] = [10, 1_000, 10_000];
const PATIENCE: Duration = Duration::from_secs(10);

fn sh(line: &str) {
    let status = Command::new("sh").args(["-ec", line]).status().expect("there is a shell");
    assert!(status.success(), "{line}");
}

fn say(bench: &str, round: usize, metric: &str, unit: &str, who: &str, value: f64) {
    println!(r#"{{"bench":"{bench}","round":{round},"metric":"{metric}","unit":"{unit}","who":"{who}","value":{value}}}"#);
}

/// CPU time of this process and of the kernel on its behalf, in milliseconds.
fn cpu_ms() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("one's own usage");
    let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    of(usage.user_time()) + of(usage.system_time())
}

/// Runs `work` in that namespace.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            setns(std::fs::File::open(netns).expect("the namespace"), CloneFlags::CLONE_NEWNET).expect("entering it");
            work()
        };
        scope.spawn(enter).join().expect("it did not panic")
    })
}

fn at(host: &str) -> PathBuf {
    Path::new("/run/netns").join(host)
}

/// Two hosts and a client whose way to both leads through the first.
fn hosts() {
    sh("mount -t tmpfs none /run; mkdir /run/netns
        for n in h1 h2 cl x1 x2 y1 y2; do ip netns add $n; ip -n $n link set lo up; done
        ip link add u1 netns h1 type veth peer name u2 netns h2; ip link add c1 netns h1 type veth peer name c0 netns cl
        ip -n h1 addr add 198.18.0.1/24 dev u1; ip -n h2 addr add 198.18.0.2/24 dev u2
        ip -n h1 addr add 198.18.1.1/24 dev c1; ip -n cl addr add 198.18.1.9/24 dev c0
        ip -n h1 link set u1 up; ip -n h2 link set u2 up; ip -n h1 link set c1 up; ip -n cl link set c0 up
        ip -n cl route add default via 198.18.1.1; ip -n h2 route add 198.18.1.0/24 via 198.18.0.1
        for n in 1 2; do
          ip -n h$n link add vh type vxlan id 77 dstport 8472 local 198.18.0.$n remote 198.18.0.$((3 - n))
          ip -n h$n link set vh netns x$n; ip -n x$n addr add 10.99.0.$n/24 dev vh; ip -n x$n link set vh up
          ip -n h$n link add vb type vxlan id 78 dstport 8473 local 198.18.0.$n remote 198.18.0.$((3 - n))
          ip -n h$n link add name b0 type bridge; ip link add p netns h$n mtu 1450 type veth peer name eth0 mtu 1450 netns y$n
          ip -n h$n link set vb mtu 1450 master b0 up; ip -n h$n link set p master b0 up; ip -n h$n link set b0 up
          ip -n y$n addr add 10.98.0.$n/24 dev eth0; ip -n y$n link set eth0 up; done");
    for host in ["h1", "h2", "cl", "x1", "x2", "y1", "y2"] {
        settle(&at(host));
    }
}

/// bbr paces by timers, which say more about the machine's load than about the way.
fn settle(netns: &Path) {
    within(netns, || {
        let set = |file: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv4/{file}"), value);
        set("tcp_congestion_control", "reno").and_then(|()| set("ip_forward", "1")).expect("settings of a namespace");
        // Connections that ended keep their port for a minute.
        set("ip_local_port_range", "1024 65535").and_then(|()| set("tcp_tw_reuse", "1")).expect("settings of a namespace");
    });
}

fn network(ingress: bool) -> Network {
    let subnet = Subnet { range: "10.0.0.0/14".parse().expect("a range"), gateway: IpAddr::from([10, 0, 0, 1]) };
    let id = NetworkId::for_test(1);
    Network { id, name: "bench".into(), vni: 4097, subnets: vec![subnet], mtu: 1450, internal: false, ingress }
}

fn address(high: u16, last: u16) -> IpAddr {
    let [third, fourth] = last.to_be_bytes();
    IpAddr::from([10, u8::try_from(high).expect("below 4"), third, fourth])
}

fn task(number: u8, network: &Network) -> TaskNetwork {
    let address = format!("10.0.0.{}/14", 10 + number).parse().expect("an address");
    let attachment = Attachment { network: network.clone(), addresses: vec![address], mac: None, link: None };
    TaskNetwork { task: TaskId::for_test(u64::from(number)), attachments: vec![attachment], lans: vec![], foreign: None }
}

fn endpoint(number: u64, address: IpAddr, location: Location) -> Endpoint {
    Endpoint { task: TaskId::for_test(number), addresses: vec![address], location }
}

fn start(host: &str) -> Netlb {
    let run_dir = format!("/run/skep-{host}");
    let config = Config { run_dir: run_dir.clone().into(), instance: run_dir, lb_driver: LbDriver::Nftables };
    within(&at(host), || Netlb::start_with(config, Oversight::OnDemand)).expect("netlb starts")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn peer(index: u8) -> Peer {
    Peer { node_index: u32::from(index), underlay: IpAddr::from([198, 18, 0, index]), mac: Mac([2, 0, 0, 0, 0, index]) }
}

fn overlay(this: u8) -> Overlay {
    Overlay { this: peer(this), port: 4789, peers: vec![peer(3 - this)] }
}

/// A service each of four tasks on the other node: addresses 10.1 (virtual), 10.2 (tasks), and a published port for some.
fn services(network: &Network, count: u16) -> Wanted {
    let backends = |number: u16| -> Vec<IpAddr> { (0..4).map(|slot| address(2, number * 4 + slot)).collect() };
    let far = Location::Remote { node_index: 2 };
    let endpoints = (0..count * 4).map(|number| endpoint(1_000 + u64::from(number), address(2, number), far));
    let vips = (0..count).map(|number| Vip { address: address(1, number), backends: backends(number) });
    let port = |number: u16| {
        let backends = backends(number).into_iter().map(|address| Backend { address, port: 80 }).collect();
        PublishedPort::new(Protocol::Tcp, 10_000 + number, PublishMode::Ingress { backends })
    };
    let (endpoints, vips) = (endpoints.collect(), vips.collect());
    Wanted {
        networks: vec![WantedNetwork { network: network.clone(), overlay: Some(overlay(1)), endpoints, vips }],
        published: (0..count).map(port).collect(),
        ..Wanted::default()
    }
}

/// B8: one of a service's four tasks is replaced: its place, the virtual address, the published port.
fn churn(rounds: usize) {
    const CHANGES: u16 = 20;
    let network = network(true);
    for round in 0..rounds {
        for size in SIZES {
            let netlb = start("h1");
            let whole = services(&network, size);
            runtime().block_on(async {
                let (cpu, wall) = (cpu_ms(), Instant::now());
                netlb.set_wanted(whole);
                netlb.applied().await.expect("it is in place");
                say("B8", round, &format!("loading {size} services, CPU"), "ms", "skep", cpu_ms() - cpu);
                say("B8", round, &format!("loading {size} services, wall"), "ms", "skep", wall.elapsed().as_secs_f64() * 1e3);
                let (cpu, wall) = (cpu_ms(), Instant::now());
                for change in 0..CHANGES {
                    netlb.change(replacement(&network, change));
                    netlb.applied().await.expect("it is in place");
                }
                let each = |all: f64| all / f64::from(CHANGES);
                say("B8", round, &format!("a task replaced among {size} services, CPU"), "ms", "skep", each(cpu_ms() - cpu));
                let wall = wall.elapsed().as_secs_f64() * 1e3;
                say("B8", round, &format!("a task replaced among {size} services, wall"), "ms", "skep", each(wall));
                assert_eq!(netlb.audit().await.expect("an audit"), Audit::default());
                netlb.remove_everything().await.expect("nothing is left");
            });
        }
    }
}

/// The task in the first slot of the fourth service goes, another one comes.
fn replacement(network: &Network, change: u16) -> Delta {
    let (service, number) = (3u16, 60_000 + change);
    let backends: Vec<IpAddr> = (1..4).map(|slot| address(2, service * 4 + slot)).chain([address(2, number)]).collect();
    let gone = if change == 0 { 1_000 + u64::from(service) * 4 } else { 1_000 + u64::from(number - 1) };
    let came = endpoint(1_000 + u64::from(number), address(2, number), Location::Remote { node_index: 2 });
    let endpoints = BTreeMap::from([(TaskId::for_test(gone), None), (came.task.clone(), Some(came))]);
    let members = NetworkDelta::Members { endpoints, vips: [(address(1, service), Some(backends.clone()))].into() };
    let backends = backends.into_iter().map(|address| Backend { address, port: 80 }).collect();
    let port = PublishedPort::new(Protocol::Tcp, 10_000 + service, PublishMode::Ingress { backends });
    let published = [((port.protocol, port.port), vec![port])].into();
    Delta { networks: [(network.id.clone(), members)].into(), published, ..Delta::default() }
}

/// A server of bytes: says how many came, or answers each request of a line with the client's address.
fn serve(netns: &Path, port: u16) {
    let listener = within(netns, || TcpListener::bind(("0.0.0.0", port)).expect("a port"));
    let answer = |mut stream: TcpStream| {
        stream.set_nodelay(true).expect("an option");
        let from = stream.peer_addr().expect("somebody").ip().to_string();
        let mut buffer = vec![0; 256 << 10];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if buffer[..length].ends_with(b"\n") && stream.write_all(format!("{from}\n").as_bytes()).is_err() {
                break;
            }
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
}

fn connect(netns: &Path, to: SocketAddr) -> TcpStream {
    within(netns, || {
        let end = Instant::now() + PATIENCE;
        loop {
            match TcpStream::connect_timeout(&to, PATIENCE) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < end, "{to}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

/// A way between two tasks, or what is like it.
struct Way {
    who: &'static str,
    from: PathBuf,
    to: SocketAddr,
}

fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"who am I\n").expect("it takes a line");
    let (mut line, mut byte) = (String::new(), [0]);
    while stream.read(&mut byte).expect("it answers") == 1 && byte != *b"\n" {
        line.push(byte[0] as char);
    }
    line
}

/// Microseconds a request on one connection, the median.
fn requests(way: &Way, count: usize, seen_as: &str) -> f64 {
    let mut stream = connect(&way.from, way.to);
    stream.set_nodelay(true).expect("an option");
    let mut times: Vec<f64> = (0..count)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(ask(&mut stream), seen_as, "{}", way.who);
            begin.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[count / 2]
}

/// Microseconds a connection takes to come about: the median and the 99th of a hundred.
fn connects(way: &Way, count: usize) -> (f64, f64) {
    let mut times = within(&way.from, || {
        let connect = |number| {
            let begin = Instant::now();
            let mut stream = TcpStream::connect(way.to).expect("it takes connections");
            let took = begin.elapsed().as_secs_f64() * 1e6;
            // The server has taken all before this one when it answers: nobody waits for a place in its queue.
            if number % 32 == 0 {
                ask(&mut stream);
            }
            took
        };
        (0..count).map(connect).collect::<Vec<f64>>()
    });
    times.sort_by(f64::total_cmp);
    (times[count / 2], times[count * 99 / 100])
}

/// Seconds of wall and of CPU for a GiB on so many connections.
fn gigabyte(way: &Way, streams: usize) -> (f64, f64) {
    const TOTAL: usize = 1 << 30;
    const PIECE: usize = 128 << 10;
    let open: Vec<TcpStream> = (0..streams).map(|_| connect(&way.from, way.to)).collect();
    let (cpu, wall) = (cpu_ms(), Instant::now());
    std::thread::scope(|scope| {
        for mut stream in open {
            scope.spawn(move || {
                let piece = vec![b'x'; PIECE];
                for _ in 0..TOTAL / streams / PIECE {
                    stream.write_all(&piece).expect("it takes bytes");
                }
                // All of it is there when this is answered.
                ask(&mut stream);
            });
        }
    });
    (wall.elapsed().as_secs_f64(), (cpu_ms() - cpu) / 1e3)
}

/// Tasks 1 and 3 on the first host, 2 on the second, which serves; port 8080 of both leads to it.
fn cluster(network: &Network, more: Wanted) -> (Vec<Netlb>, Vec<PathBuf>) {
    let netlbs = vec![start("h1"), start("h2")];
    let runtime = runtime();
    let mut paths = Vec::new();
    for (number, host) in [(1, 0), (2, 1), (3, 0)] {
        let made = runtime.block_on(netlbs[host].ensure_task(task(number, network))).expect("a task");
        settle(&made.path);
        paths.push(made.path);
    }
    for (this, netlb) in [1u8, 2].into_iter().zip(&netlbs) {
        let mut wanted = if this == 1 { more.clone() } else { Wanted::default() };
        if wanted.networks.is_empty() {
            wanted.networks.push(WantedNetwork { network: network.clone(), overlay: None, endpoints: vec![], vips: vec![] });
        }
        let on = &mut wanted.networks[0];
        on.overlay = Some(overlay(this));
        for (number, host) in [(1u8, 1u8), (2, 2), (3, 1)] {
            let location = if host == this { Location::Local } else { Location::Remote { node_index: u32::from(host) } };
            on.endpoints.push(endpoint(u64::from(number), address(0, 10 + u16::from(number)), location));
            wanted.tasks.extend((host == this).then(|| TaskId::for_test(u64::from(number))));
        }
        on.vips.push(Vip { address: address(3, 1), backends: vec![address(0, 13)] });
        let backends = vec![Backend { address: address(0, 12), port: 80 }];
        wanted.published.push(PublishedPort::new(Protocol::Tcp, 8080, PublishMode::Ingress { backends }));
        runtime.block_on(async {
            netlb.set_wanted(wanted);
            netlb.applied().await.expect("it is in place");
        });
    }
    (netlbs, paths)
}

/// B9: from one task to another of the same host, by its own address and by a virtual one.
fn vip_connect(rounds: usize) {
    const CONNECTS: usize = 2_000;
    for size in [10, 10_000] {
        let network = network(false);
        let (netlbs, tasks) = cluster(&network, services(&network, size));
        serve(&tasks[2], 80);
        let way = |who, from: &PathBuf, to: IpAddr| Way { who, from: from.clone(), to: SocketAddr::new(to, 80) };
        let ways =
            [way("direct", &tasks[0], address(0, 13)), way("skep", &tasks[0], address(3, 1)), way("hairpin", &tasks[2], address(3, 1))];
        for round in 0..rounds {
            // There and back, so that who comes first has nothing of it.
            for way in ways.iter().chain(ways.iter().rev()) {
                let (middle, late) = connects(way, CONNECTS);
                say("B9", round, &format!("connect, {size} services, p50"), "us", way.who, middle);
                say("B9", round, &format!("connect, {size} services, p99"), "us", way.who, late);
            }
        }
        let runtime = runtime();
        netlbs.iter().for_each(|netlb| runtime.block_on(netlb.remove_everything()).expect("nothing is left"));
    }
}

/// B10: from a task to one on another host; a VXLAN made by hand, whose devices are in the two namespaces themselves, or on a bridge of
/// each host that leads into a namespace, as dockerd has it; the hosts' own wire.
fn throughput(rounds: usize) {
    let network = network(false);
    let (_netlbs, tasks) = cluster(&network, Wanted::default());
    let way = |who, from: PathBuf, to: IpAddr| Way { who, from, to: SocketAddr::new(to, 80) };
    let ways = [
        way("skep", tasks[0].clone(), address(0, 12)),
        way("vxlan by hand", at("x1"), IpAddr::from([10, 99, 0, 2])),
        way("bridge by hand", at("y1"), IpAddr::from([10, 98, 0, 2])),
        way("bare veth", at("h1"), IpAddr::from([198, 18, 0, 2])),
    ];
    for netns in [&tasks[1], &at("x2"), &at("y2"), &at("h2")] {
        serve(netns, 80);
    }
    let seen_as = ["10.0.0.11", "10.99.0.1", "10.98.0.1", "198.18.0.1"];
    for round in 0..rounds {
        for (way, seen_as) in ways.iter().zip(seen_as).chain(ways.iter().zip(seen_as).rev()) {
            for streams in [1, 8] {
                let (wall, cpu) = gigabyte(way, streams);
                say("B10", round, &format!("a GiB, {streams} TCP streams, wall"), "s", way.who, wall);
                say("B10", round, &format!("a GiB, {streams} TCP streams, CPU"), "s", way.who, cpu);
            }
            say("B10", round, "a byte there and back, p50", "us", way.who, requests(way, 2_000, seen_as));
        }
    }
}

/// B11, the way alone: a client's requests of a line to a port of one host, the task on the other one; directly to a program of that other host.
fn ingress(rounds: usize) {
    let (netlbs, tasks) = cluster(&network(true), Wanted::default());
    serve(&tasks[1], 80);
    serve(&at("h2"), 8081);
    let way = |who, to: [u8; 4], port| Way { who, from: at("cl"), to: SocketAddr::new(to.into(), port) };
    let ways = [way("skep", [198, 18, 1, 1], 8080), way("direct", [198, 18, 0, 2], 8081)];
    for round in 0..rounds {
        for way in ways.iter().chain(ways.iter().rev()) {
            // Each answer names the client's own address.
            say("B11", round, "request, keep-alive, p50", "us", way.who, requests(way, 4_000, "198.18.1.9"));
            let cpu = cpu_ms();
            requests(way, 4_000, "198.18.1.9");
            say("B11", round, "request, keep-alive, CPU", "us", way.who, (cpu_ms() - cpu) / 4.0);
            say("B11", round, "new connection, p50", "us", way.who, connects(way, 1_000).0);
        }
    }
    netlbs.iter().for_each(|netlb| runtime().block_on(netlb.remove_everything()).expect("nothing is left"));
}

/// B11 with a web server.
fn web_ingress(rounds: usize) {
    let (netlbs, tasks) = cluster(&network(true), Wanted::default());
    web::bench(rounds, &netlbs, &tasks);
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let rounds = arguments.next().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    hosts();
    match what.as_str() {
        "churn" => churn(rounds),
        "connect" => vip_connect(rounds),
        "overlay" => throughput(rounds),
        "ingress" => {
            ingress(rounds);
            web_ingress(rounds);
        }
        "web" => web_ingress(rounds),
        other => panic!("{other:?}: churn, connect, overlay, ingress or web"),
    }
}
