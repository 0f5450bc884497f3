//! Questions per second of a task's DNS, and its processor time, against a UDP echo of the same shape (benchmark B15).
//!
//! ```sh
//! cargo run --release -p skep-netlb --example dns_bench      # as root; takes half a minute
//! scripts/bench B15                                          # calls it as `dns_bench json ROUNDS`: a line for each figure
//! ```
//! Both servers are loops of the same kind on sockets in the same namespace, asked by the same client, a process of its own;
//! the echo sends back what came, padded to the length of an answer. Rounds alternate, so that whatever else the machine does
//! meets both. Judge the ratios.

use skep_netlb::dns::*;
use skep_types::{NetworkId, ServiceId, TaskId};
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const INSIDE: &str = "SKEP_DNS_BENCH";
const NETNS: &str = "/run/netns/bench";
const NAMES: usize = 10_000;
/// The first is what the others are measured by.
const KINDS: [(&str, &str); 6] =
    [("udp echo", "echo"), ("A", "a"), ("AAAA", "aaaa"), ("PTR", "ptr"), ("SRV", "srv"), ("A, resolver dead, foreign asked", "dead")];
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(700);
const ECHO_PORT: u16 = 5_300;
/// Threads of the client, and questions that each has under way.
const THREADS: usize = 2;
const WINDOW: usize = 16;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("client") => client(),
        // `skep-bench` made the namespaces already.
        Some("json") => server(std::env::args().nth(2).and_then(|rounds| rounds.parse().ok())),
        _ if std::env::var_os(INSIDE).is_some() => server(None),
        _ => {
            // A host of its own, which is gone with the process.
            let status =
                Command::new("unshare").args(["-n", "-m", "--"]).arg(std::env::current_exe().expect("a path")).env(INSIDE, "1").status();
            std::process::exit(status.expect("unshare runs").code().unwrap_or(1));
        }
    }
}

/// `lines`: so many rounds, each told as lines of JSON; else [`ROUNDS`], and a table at the end.
fn server(lines: Option<usize>) {
    let made = "mount -t tmpfs none /run && ip link set lo up && ip netns add bench && ip -n bench link set lo up";
    assert!(Command::new("sh").args(["-ec", made]).status().expect("sh runs").success(), "needs root and iproute2");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let limits = DnsLimits { messages_per_second: u32::MAX, ..DnsLimits::default() };
        let dns = Dns::new(limits);
        dns.change_names(|names| names.replace(NetworkId::for_test(1), names_of_a_network()));
        // Takes questions and says nothing.
        let dead = UdpSocket::bind("127.0.0.53:53").expect("a free address");
        dns.set_host_resolvers(vec![Resolver::of_host(dead.local_addr().expect("an address"))]);
        let asker = Asker { networks: vec![NetworkId::for_test(1)], outside: true, ..Asker::default() };
        dns.serve(&TaskId::for_test(1), Path::new(NETNS), Asking::new(asker)).await.expect("it serves");
        let echo = tokio::spawn(echo(within(|| UdpSocket::bind(("127.0.0.1", ECHO_PORT)).expect("a free port"))));
        let mut rounds: Vec<Vec<Round>> = Vec::new();
        for number in 0..lines.unwrap_or(ROUNDS) {
            let mut of_each = Vec::new();
            for (_, kind) in KINDS {
                of_each.push(round(kind).await);
            }
            if lines.is_some() {
                tell(number, &of_each);
            }
            rounds.push(of_each);
        }
        if lines.is_none() {
            table(&rounds);
            println!("\none answer without sockets: {:.2} us; {:?}", alone(), dns.counters());
        }
        echo.abort();
        dns.stop_all().await;
    });
}

/// The figures of a round that B15 has goals for. The echo's own are those of a peer.
fn tell(number: usize, of_each: &[Round]) {
    let line = |metric: &str, who: &str, value: f64| {
        println!(r#"{{"bench":"B15","round":{number},"metric":"{metric}","unit":"us","who":"{who}","value":{value}}}"#);
    };
    let [echo, a, .., dead] = of_each else { return };
    let each = |round: &Round| 1e6 / round.rate;
    for (metric, of) in
        [("a question under load, wall", &each as &dyn Fn(&Round) -> f64), ("a question, CPU of the server", &|of| of.cpu_us)]
    {
        line(metric, "skep", of(a));
        line(metric, "udp echo", of(echo));
    }
    line("p99 with the resolver dead", "skep", dead.p99_us);
    line("p99 with the resolver dead", "no foreign question", a.p99_us);
}

fn table(rounds: &[Vec<Round>]) {
    println!("{NAMES} names; {} rounds each; medians\n", rounds.len());
    println!("{:<34} {:>10} {:>8} {:>9} {:>9} {:>9}", "", "asked/s", "ratio", "cpu us", "p50 us", "p99 us");
    for (at, (title, _)) in KINDS.iter().enumerate() {
        let median = |of: &dyn Fn(&[Round]) -> f64| {
            let mut all: Vec<f64> = rounds.iter().map(|round| of(round)).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let (rate, ratio) = (median(&|round| round[at].rate), median(&|round| round[at].rate / round[0].rate));
        let (cpu, p50, p99) = (median(&|round| round[at].cpu_us), median(&|round| round[at].p50_us), median(&|round| round[at].p99_us));
        println!("{title:<34} {rate:>10.0} {ratio:>8.2} {cpu:>9.2} {p50:>9.0} {p99:>9.0}");
    }
}

fn names_of_a_network() -> NetworkNames {
    let mut network = NetworkNames::new("bench", vec!["10.0.0.0/16".parse().expect("a range")]);
    for number in 0..NAMES {
        let address = IpAddr::from([10, 0, (number / 250) as u8, (number % 250) as u8]);
        let [high, low] = (number as u16).to_be_bytes();
        network.set_service(ServiceNames {
            id: ServiceId::for_test(number as u64),
            name: format!("svc{number:05}"),
            aliases: vec![],
            reach: Reach::Virtual(vec![address, IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low])])]),
            ports: vec![NamedPort { name: Some("http".into()), protocol: skep_netlb::Protocol::Tcp, port: 80 }],
        });
    }
    network
}

/// Processor time of one answer as a plain function, in microseconds.
fn alone() -> f64 {
    const TIMES: usize = 200_000;
    let mut names = Names::default();
    names.replace(NetworkId::for_test(1), names_of_a_network());
    let asker = Asker { networks: vec![NetworkId::for_test(1)], outside: true, ..Asker::default() };
    let questions: Vec<_> = (0..NAMES).map(|number| question("a", number)).collect();
    let before = cpu();
    for number in 0..TIMES {
        let answered = answer(&questions[number % NAMES], Transport::Udp, &names, &asker, number as u64);
        assert!(matches!(answered, Answer::Reply(_)));
    }
    (cpu() - before).as_secs_f64() * 1e6 / TIMES as f64
}

struct Round {
    rate: f64,
    /// Of this process per answer.
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
}

async fn round(kind: &str) -> Round {
    let before = cpu();
    let mut client = tokio::process::Command::new("nsenter");
    client.arg(format!("--net={NETNS}")).arg(std::env::current_exe().expect("a path")).args(["client", kind]);
    let output = client.stdout(Stdio::piped()).spawn().expect("nsenter runs").wait_with_output().await.expect("it ends");
    let cpu = (cpu() - before).as_secs_f64() * 1e6;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    Round { rate: numbers[0] / numbers[1], cpu_us: cpu / numbers[0], p50_us: numbers[2], p99_us: numbers[3] }
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("it is known");
    let of = |time: nix::sys::time::TimeVal| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64);
    of(usage.user_time()) + of(usage.system_time())
}

/// Runs `work` on a thread in the namespace.
fn within<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            let netns = std::fs::File::open(NETNS).expect("it is there");
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).expect("it can be entered");
            work()
        };
        scope.spawn(enter).join().expect("no panic")
    })
}

/// The same loop as the server's: wait, take what there is, send back at once.
async fn echo(socket: UdpSocket) {
    socket.set_nonblocking(true).expect("a socket");
    let socket = tokio::net::UdpSocket::from_std(socket).expect("a socket");
    let mut buffer = vec![0; 4096];
    loop {
        socket.readable().await.expect("a socket");
        for _ in 0..32 {
            let Ok((length, from)) = socket.try_recv_from(&mut buffer) else { break };
            let _ = socket.try_send_to(&buffer[..length + 16], from);
        }
    }
}

/// Asks with a window of questions per thread and prints: answers, seconds, median and 99th percentile in microseconds.
fn client() {
    let kind = std::env::args().nth(2).expect("what to ask");
    let start = Instant::now();
    let waits: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn({
                    let kind = kind.clone();
                    move || ask(&kind, thread)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut all: Vec<f64> = waits.concat();
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
    println!("{} {seconds} {} {}", all.len(), at(0.5), at(0.99));
}

fn ask(kind: &str, thread: usize) -> Vec<f64> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    socket.connect(if kind == "echo" { ("127.0.0.1", ECHO_PORT) } else { ("127.0.0.11", 53) }).expect("a route");
    let foreign = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    foreign.connect(("127.0.0.11", 53)).expect("a route");
    let (start, mut waits, mut number, mut buffer) = (Instant::now(), Vec::new(), thread * 7_919, [0; 4096]);
    while start.elapsed() < ROUND {
        let sent = Instant::now();
        for _ in 0..WINDOW {
            number += 1;
            socket.send(&question(kind, number)).expect("sent");
        }
        if kind == "dead" {
            foreign.send(&question_for(&format!("n{number}.example"), 1)).expect("sent");
        }
        for _ in 0..WINDOW {
            let length = socket.recv(&mut buffer).expect("an answer");
            assert!(kind == "echo" || buffer[3] & 0xf == 0 && buffer[7] == 1 && length > 40, "an answer with a record");
            waits.push(sent.elapsed().as_secs_f64() * 1e6);
        }
    }
    waits
}

fn question(kind: &str, number: usize) -> Vec<u8> {
    let number = number % NAMES;
    match kind {
        "aaaa" => question_for(&format!("svc{number:05}"), 28),
        "ptr" => question_for(&format!("{}.{}.0.10.in-addr.arpa", number % 250, number / 250), 12),
        "srv" => question_for(&format!("_http._tcp.svc{number:05}"), 33),
        _ => question_for(&format!("svc{number:05}"), 1),
    }
}

fn question_for(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes
}
