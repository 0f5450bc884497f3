//! What floods of HTTP/2 cost the manager, and those whom it serves meanwhile. A measurement, to be read on a quiet machine:
//! `cargo test --release -p skep-manager --test cluster -- --ignored --nocapture what_floods_cost`.
//!
//! Manager, flood and honest client have threads of their own, so that the processor time of each can be told; they share the
//! machine, so that latencies are compared with those beside a thread that only spins.

use crate::abuse::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, REQUEST, RST_STREAM, SETTINGS, Tls, frame, try_speaker};
use crate::support::Cluster;
use skep_proto::v1::{self, control_client::ControlClient};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

const EACH: Duration = Duration::from_secs(4);
/// What a client may do at once is used up by then.
const BEFORE: Duration = Duration::from_secs(4);
const DATA: u8 = 0;
const PRIORITY: u8 = 2;
const WINDOW_UPDATE: u8 = 8;

fn runtime(name: &str, threads: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build().unwrap()
}

/// Processor time of the threads whose names begin so.
fn cpu(names: &[&str]) -> Duration {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if names.iter().any(|name| read("comm").starts_with(name)) {
            total += read("schedstat").split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(total)
}

/// What a client does that means harm, over and over until it is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flood {
    /// A thread that spins: what the flood's own processor time does to the others.
    Spin,
    /// Connections that say nothing: what each new one costs.
    Connections,
    RapidReset,
    Continuation,
    Streams,
    NoWindow,
    Pings,
    PingsUnread,
    Settings,
    Priorities,
    EmptyData,
    Windows,
}

const FLOODS: [Flood; 12] = [
    Flood::Spin,
    Flood::Connections,
    Flood::RapidReset,
    Flood::Continuation,
    Flood::Streams,
    Flood::NoWindow,
    Flood::Pings,
    Flood::PingsUnread,
    Flood::Settings,
    Flood::Priorities,
    Flood::EmptyData,
    Flood::Windows,
];

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    connections: AtomicU64,
    frames: AtomicU64,
}

impl Tally {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

impl Flood {
    /// What opens it, and what is said again and again; `number` rises.
    fn frames(self, number: u32) -> Vec<u8> {
        let stream = 2 * number + 1;
        match self {
            Self::RapidReset => {
                [frame(HEADERS, END_HEADERS | END_STREAM, stream, REQUEST), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
            }
            Self::Continuation if number == 0 => frame(HEADERS, END_STREAM, 1, REQUEST),
            Self::Continuation => frame(CONTINUATION, 0, 1, &[0x00, 1, b'a', 1, b'b']),
            Self::Streams => frame(HEADERS, END_HEADERS, stream, REQUEST),
            Self::NoWindow if number == 0 => frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]),
            Self::NoWindow => frame(HEADERS, END_HEADERS | END_STREAM, stream, REQUEST),
            Self::Pings | Self::PingsUnread => frame(PING, 0, 0, &[0; 8]),
            Self::Settings => frame(SETTINGS, 0, 0, &[]),
            Self::Priorities => frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]),
            Self::EmptyData if number == 0 => frame(HEADERS, END_HEADERS, 1, REQUEST),
            Self::EmptyData => frame(DATA, 0, 1, &[]),
            Self::Windows => frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
            Self::Spin | Self::Connections => Vec::new(),
        }
    }

    /// Frames of a connection; then it waits until it is told to stop.
    fn limit(self) -> u32 {
        match self {
            Self::NoWindow => 256,
            _ => u32::MAX / 4,
        }
    }

    async fn run(self, addr: SocketAddr, tally: Arc<Tally>) {
        while tally.goes_on() {
            if self == Self::Spin {
                let until = Instant::now() + Duration::from_millis(5);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                tokio::task::yield_now().await;
                continue;
            }
            let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(10), try_speaker(addr)).await else { continue };
            tally.connections.fetch_add(1, Ordering::Relaxed);
            if self != Self::Connections {
                self.say(stream, &tally).await;
            }
        }
    }

    async fn say(self, stream: Tls, tally: &Arc<Tally>) {
        let (mut from_server, mut to_server) = tokio::io::split(stream);
        let mut reading = tokio::task::JoinSet::new();
        if self != Self::PingsUnread {
            reading.spawn(async move {
                let mut bytes = vec![0; 64 << 10];
                while from_server.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
            });
        }
        let mut number = 0;
        while tally.goes_on() {
            let mut some = Vec::new();
            let from = number;
            while number < self.limit() && number < from + 200 {
                some.extend(self.frames(number));
                number += 1;
            }
            tally.frames.fetch_add(u64::from(number - from), Ordering::Relaxed);
            let write = async { if some.is_empty() { std::future::pending().await } else { to_server.write_all(&some).await.is_ok() } };
            tokio::select! {
                goes_on = write => if !goes_on { return },
                Some(_) = reading.join_next() => return,
                () = async { while tally.goes_on() { tokio::time::sleep(Duration::from_millis(20)).await } } => return,
            }
        }
    }
}

/// Round trips of an honest client, one after the other with pauses.
async fn honest(channel: Channel, tally: Arc<Tally>) -> Vec<Duration> {
    let mut control = ControlClient::new(channel);
    let mut taken = Vec::new();
    while tally.goes_on() {
        let begun = Instant::now();
        control.list_nodes(v1::ListNodesRequest::default()).await.unwrap();
        taken.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    taken.sort_unstable();
    taken
}

/// How the port is reached from elsewhere: to addresses of the machine itself it sets no limits of handshakes. Without any other, the
/// figures are those of a server without these limits.
fn from_outside(addr: SocketAddr) -> SocketAddr {
    let found = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        // Nothing is sent: the kernel tells where it would be sent from.
        socket.connect("198.51.100.1:9")?;
        socket.local_addr()
    });
    match found {
        Ok(own) => SocketAddr::new(own.ip(), addr.port()),
        Err(error) => {
            println!("no address but loopback ({error}): handshakes are not limited");
            addr
        }
    }
}

#[test]
#[ignore = "a measurement for a quiet machine"]
fn what_floods_cost() {
    let (manager, others, harm) = (runtime("manager", 2), runtime("honest", 1), runtime("flood", 1));
    println!("{:<14}{:>9}{:>9}{:>12}{:>12}{:>10}{:>10}", "flood", "manager", "flood", "conns/s", "frames/s", "p50 µs", "p99 µs");
    for flood in FLOODS {
        // A new one each time: it remembers who floods.
        let cluster = manager.block_on(Cluster::start_at("0.0.0.0:0"));
        let channel = others.block_on(cluster.channel(&cluster.security));
        let tally = Arc::new(Tally::default());
        let (addr, told) = (from_outside(cluster.addr), tally.clone());
        let harming = harm.spawn(async move {
            let mut floods = tokio::task::JoinSet::new();
            for _ in 0..if flood == Flood::NoWindow { 32 } else { 1 } {
                floods.spawn(flood.run(addr, told.clone()));
            }
            floods.join_all().await
        });
        let asking = others.spawn(honest(channel, tally.clone()));
        std::thread::sleep(BEFORE);
        let (begun, ours, theirs) = (Instant::now(), cpu(&["manager", "store-"]), cpu(&["flood"]));
        std::thread::sleep(EACH);
        let (elapsed, ours, theirs) = (begun.elapsed(), cpu(&["manager", "store-"]) - ours, cpu(&["flood"]) - theirs);
        tally.stop.store(true, Ordering::Relaxed);
        let taken = others.block_on(asking).unwrap();
        harm.block_on(harming).unwrap();
        let share = |time: Duration| 100.0 * time.as_secs_f64() / elapsed.as_secs_f64();
        let rate = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / (BEFORE + elapsed).as_secs_f64();
        println!(
            "{:<14}{:>8.1}%{:>8.1}%{:>12.0}{:>12.0}{:>10}{:>10}",
            format!("{flood:?}"),
            share(ours),
            share(theirs),
            rate(&tally.connections),
            rate(&tally.frames),
            taken[taken.len() / 2].as_micros(),
            taken[taken.len() * 99 / 100].as_micros(),
        );
        manager.block_on(async { drop(cluster) });
    }
}
