//! B11 with a web server: nginx behind a published port of another host, beside nginx itself and beside a proxy in front of it.
//!
//! ```text
//!   skep           client ─ host 1, :8080 ═ VXLAN ═ task of host 2        source kept
//!   masqueraded    client ─ host 1, :8090 ═ VXLAN ═ task of host 2        what follows by hand: as dockerd's mesh does it
//!   haproxy        client ─ haproxy on host 1 ──────── host 2
//!   direct         client ─ host 1 forwards ────────── host 2
//!   veth           client ─ host 1                                        the floor
//! ```
//! One nginx each, of one process. CPU is this process's, which is the client, nginx's and haproxy's; the kernel charges the way of a packet
//! to whoever sent it.

use super::*;
use std::process::{Child, Stdio};

/// Connections at a time.
const CLIENTS: usize = 4;
/// Of each of them, a round.
const KEPT: usize = 1_500;
const NEW: usize = 300;
/// The network of the masqueraded way, and what its requests come from there.
const HAND: [u8; 4] = [10, 7, 0, 1];

/// Where Debian's nginx and haproxy were unpacked (`scripts/web-peers`).
fn unpacked() -> Option<PathBuf> {
    std::env::var_os("PEER_WEB").map(PathBuf::from).filter(|dir| dir.join("usr/sbin/nginx").exists())
}

/// A program of others that goes with this one.
struct Peer(Child);

impl Peer {
    fn start(dir: &Path, netns: &Path, program: &str, arguments: &[&str]) -> Self {
        let enter = format!("--net={}", netns.display());
        let mut command = Command::new("nsenter");
        command.arg(enter).arg("--").arg(dir.join("usr/sbin").join(program)).args(arguments);
        command.env("LD_LIBRARY_PATH", dir.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))).stdin(Stdio::null());
        Self(command.spawn().expect("nsenter is there"))
    }

    /// CPU time so far, in milliseconds. Both programs have one thread.
    fn cpu_ms(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.0.id())).unwrap_or_default();
        text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).expect("the peer runs") / 1e6
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nginx that answers with the client's address.
fn nginx(dir: &Path, netns: &Path, port: u16) -> Peer {
    let name = netns.file_name().expect("a file").to_string_lossy().into_owned();
    let home = format!("/run/web/{name}-{port}");
    std::fs::create_dir_all(&home).expect("a directory");
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = kinds.map(|kind| format!("{kind}_temp_path {home}/{kind};\n")).concat();
    let configuration = format!(
        "user root;\nworker_processes 1;\nmaster_process off;\ndaemon off;\npid {home}/pid;\nerror_log {home}/error;\nevents {{ worker_connections 512; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; tcp_nodelay on;\n{temporary}server {{ listen {port} backlog=4096;\n\
         location / {{ return 200 \"$remote_addr\\n\"; }} }} }}\n"
    );
    let file = format!("{home}/conf");
    std::fs::write(&file, configuration).expect("a file");
    Peer::start(dir, netns, "nginx", &["-e", &format!("{home}/error"), "-p", &home, "-c", &file])
}

/// haproxy as a proxy of TCP.
fn haproxy(dir: &Path, netns: &Path, from: &str, to: &str) -> Peer {
    let file = "/run/web/haproxy";
    let configuration = format!(
        "global\n maxconn 1000\n nbthread 1\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n\
         listen web\n bind {from}\n server one {to}\n"
    );
    std::fs::write(file, configuration).expect("a file");
    Peer::start(dir, netns, "haproxy", &["-q", "-db", "-f", file])
}

/// One of the ways, and as whom the server must see the client.
struct To {
    who: &'static str,
    address: SocketAddr,
    seen_as: &'static str,
}

/// One request; the body of the answer.
fn get(stream: &mut TcpStream, last: bool, answer: &mut Vec<u8>) -> std::io::Result<()> {
    let request: &[u8] =
        if last { b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" } else { b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" };
    stream.write_all(request)?;
    answer.clear();
    let mut part = [0; 2048];
    loop {
        match stream.read(&mut part)? {
            0 if last && !answer.is_empty() => return Ok(()),
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&part[..count]),
        }
        // The head is one piece, the body a line: the answer is whole when it ends with one that is not empty.
        if !last && answer.ends_with(b"\n") && !answer.ends_with(b"\r\n") {
            return Ok(());
        }
    }
}

fn body(answer: &[u8]) -> &str {
    std::str::from_utf8(answer).ok().and_then(|text| text.trim_end().rsplit('\n').next()).unwrap_or_default()
}

/// Seconds of wall that all took, and microseconds of each request.
fn load(to: &To, kept: bool) -> (f64, Vec<f64>) {
    let one = || {
        let (mut answer, mut times) = (Vec::new(), Vec::new());
        let open = || TcpStream::connect_timeout(&to.address, PATIENCE).unwrap_or_else(|error| panic!("{}: {error}", to.who));
        let mut stream = kept.then(open);
        for _ in 0..if kept { KEPT } else { NEW } {
            let begin = Instant::now();
            match &mut stream {
                Some(stream) => get(stream, false, &mut answer),
                None => get(&mut open(), true, &mut answer),
            }
            .unwrap_or_else(|error| panic!("{}: {error}", to.who));
            times.push(begin.elapsed().as_secs_f64() * 1e6);
            assert_eq!(body(&answer), to.seen_as, "{}", to.who);
        }
        times
    };
    within(&at("cl"), || {
        let wall = Instant::now();
        let mut times: Vec<f64> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(one)).collect();
            clients.into_iter().flat_map(|client| client.join().expect("it did not panic")).collect()
        });
        let wall = wall.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        (wall, times)
    })
}

/// The same way without the client's address: a network that is not `ingress`, into which a rule by hand leads a port of the host; its
/// sandbox gives the packets an address of its own.
fn masqueraded(netlbs: &[Netlb]) -> (Network, PathBuf) {
    let subnet = Subnet { range: "10.4.0.0/14".parse().expect("a range"), gateway: IpAddr::from([10, 4, 0, 1]) };
    let network = Network { id: NetworkId::for_test(2), name: "hand".into(), vni: 4098, subnets: vec![subnet], ..network(false) };
    let address = "10.4.0.14/14".parse().expect("an address");
    let attachment = Attachment { network: network.clone(), addresses: vec![address], mac: None, link: None };
    let task = TaskNetwork { task: TaskId::for_test(4), attachments: vec![attachment], lans: vec![], foreign: None };
    let made = runtime().block_on(netlbs[1].ensure_task(task)).expect("a task");
    settle(&made.path);
    (network, made.path)
}

/// What is wanted of that network on this host.
fn hand(network: &Network, this: u8) -> WantedNetwork {
    let at = |on: u8| if on == this { Location::Local } else { Location::Remote { node_index: u32::from(on) } };
    let mut endpoints = vec![endpoint(4, IpAddr::from([10, 4, 0, 14]), at(2))];
    // The first host's sandbox, as far as the other one knows.
    endpoints.extend((this == 2).then(|| endpoint(5, IpAddr::from(HAND), at(1))));
    WantedNetwork { network: network.clone(), overlay: Some(overlay(this)), endpoints, vips: vec![] }
}

fn lead_by_hand(network: &Network) {
    let sandbox = format!("/run/skep-h1/netns/sbx-{}", network.id);
    sh(&format!(
        "nsenter --net={sandbox} ip addr add {hand}/32 dev lo
         gw=$(nsenter --net={sandbox} ip -o -4 addr show dev gw | sed 's/.* inet \\([0-9.]*\\).*/\\1/')
         link=$(ip -n h1 -o link | sed -n 's/.*: \\(sk[^:@]*g{vni:x}\\)[:@].*/\\1/p')
         ip -n h1 route add 10.4.0.0/14 via $gw dev $link
         nsenter --net={sandbox} nft 'table ip hand {{ chain post {{ type nat hook postrouting priority 90; oifname \"vx0\" snat to {hand}; }}; }}'
         ip netns exec h1 nft 'table ip hand {{ chain pre {{ type nat hook prerouting priority -110;
             ip daddr 198.18.1.1 tcp dport 8090 dnat to 10.4.0.14:80; }}; }}'",
        hand = IpAddr::from(HAND),
        vni = network.vni,
    ));
}

/// Says so and does nothing if there is no nginx.
pub(super) fn bench(rounds: usize, netlbs: &[Netlb], tasks: &[PathBuf]) {
    let Some(dir) = unpacked() else {
        eprintln!("B11 without nginx and haproxy: unpack them with scripts/web-peers and say where by PEER_WEB");
        return;
    };
    let (by_hand, far) = masqueraded(netlbs);
    for (this, netlb) in [1u8, 2].into_iter().zip(netlbs) {
        runtime().block_on(async {
            let networks = [(by_hand.id.clone(), NetworkDelta::Whole(hand(&by_hand, this)))].into();
            netlb.change(Delta { networks, tasks: [(TaskId::for_test(4), this == 2)].into(), ..Delta::default() });
            netlb.applied().await.expect("it is in place");
        });
    }
    lead_by_hand(&by_hand);
    let peers = [
        nginx(&dir, &tasks[1], 80),
        nginx(&dir, &far, 80),
        nginx(&dir, &at("h2"), 8083),
        nginx(&dir, &at("h1"), 8083),
        haproxy(&dir, &at("h1"), "198.18.1.1:8082", "198.18.0.2:8083"),
    ];
    let to = |who, address: &str, seen_as| To { who, address: address.parse().expect("an address"), seen_as };
    let client = "198.18.1.9";
    let ways = [
        to("skep", "198.18.1.1:8080", client),
        to("direct", "198.18.0.2:8083", client),
        to("masqueraded", "198.18.1.1:8090", "10.7.0.1"),
        to("haproxy", "198.18.1.1:8082", "198.18.0.1"),
        to("veth", "198.18.1.1:8083", client),
    ];
    for way in &ways {
        drop(connect(&at("cl"), way.address));
        load(way, true);
    }
    let cpu = || cpu_ms() + peers.iter().map(Peer::cpu_ms).sum::<f64>();
    for round in 0..rounds {
        for way in ways.iter().chain(ways.iter().rev()) {
            for (kept, what) in [(true, "HTTP, kept connection"), (false, "HTTP, new connection")] {
                let begin = cpu();
                let (wall, times) = load(way, kept);
                let (cpu, count) = (cpu() - begin, times.len());
                let figure = |metric: &str, value| say("B11", round, &format!("{what}, {metric}"), "us", way.who, value);
                figure("a request", wall * 1e6 / count as f64);
                figure("CPU", cpu * 1e3 / count as f64);
                figure("p50", times[count / 2]);
                figure("p99", times[count * 99 / 100]);
                if ["skep", "masqueraded"].contains(&way.who) {
                    say("B11", round, &format!("source kept, {what}, CPU"), "us", way.who, cpu * 1e3 / count as f64);
                }
            }
        }
    }
}
