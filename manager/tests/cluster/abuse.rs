//! Clients that mean harm: by HTTP/2, by gRPC, by messages that are none. Whatever they send, the manager goes on for the others.

use crate::every_method::{anonymous_tls, ask, ask_bytes, every_method};
use crate::support::{Cluster, Dice, PATIENCE, eventually, service, tasks};
use crate::wire::varint;
use http::Method;
use rustls::pki_types::ServerName;
use skep_ca::{Connector, SecurityConfig};
use skep_proto::v1;
use skep_types::{ClusterView as _, NodeRole};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::{Code, Request};

pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// `ENHANCE_YOUR_CALM`, RFC 9113 section 7.
const CALM: u32 = 0xb;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A request by HPACK's static table: POST https / with an authority of one letter.
pub const REQUEST: &[u8] = &[0x83, 0x87, 0x84, 0x41, 1, b'x'];

/// How a connection ended: the code of its GOAWAY, or `None` if it just broke.
async fn end_of(mut from_server: impl tokio::io::AsyncRead + Unpin) -> Option<u32> {
    let mut seen = None;
    let mut head = [0; 9];
    while from_server.read_exact(&mut head).await.is_ok() {
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if from_server.read_exact(&mut payload).await.is_err() {
            break;
        }
        if head[3] == GOAWAY {
            seen = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
    seen
}

pub type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// A client that may speak HTTP/2, after the handshakes.
pub async fn speaker(addr: SocketAddr) -> Tls {
    try_speaker(addr).await.unwrap()
}

/// The same where the server may refuse.
pub async fn try_speaker(addr: SocketAddr) -> std::io::Result<Tls> {
    let tcp = TcpStream::connect(addr).await?;
    let name = ServerName::try_from("swarm-ca").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(anonymous_tls(true)).connect(name, tcp).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    Ok(stream)
}

/// The same with a certificate; `None` if the server does not let it in.
async fn speaker_as(cluster: &Cluster, security: &SecurityConfig) -> Option<Tls> {
    let tcp = TcpStream::connect(cluster.addr).await.unwrap();
    let (mut stream, _) = Connector::node(security).connect(tcp).await.ok()?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
    // In TLS 1.3 a client is done before it is refused: who is let in is greeted.
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut settings = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut settings).await.ok()?;
    Some(stream)
}

/// Rapid reset (CVE-2023-44487).
fn resets() -> impl Iterator<Item = Vec<u8>> + Send + 'static {
    (0..20_000u32).flat_map(|number| {
        let stream = 2 * number + 1;
        [frame(HEADERS, END_HEADERS | END_STREAM, stream, REQUEST), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())]
    })
}

/// Writes all of it, or until the server has had enough. Whether it had: it said so, or it broke off.
async fn is_cut_off(stream: Tls, frames: impl Iterator<Item = Vec<u8>> + Send + 'static) -> bool {
    let (from_server, mut to_server) = tokio::io::split(stream);
    let mut writing = tokio::spawn(async move {
        let mut frames = frames.peekable();
        while frames.peek().is_some() {
            let some: Vec<u8> = frames.by_ref().take(200).flatten().collect();
            if to_server.write_all(&some).await.is_err() {
                return false;
            }
        }
        // Else the reader would wait for ever.
        let _ = to_server.shutdown().await;
        true
    });
    let end = tokio::time::timeout(PATIENCE, end_of(from_server)).await.expect("the connection ends");
    let all_written = tokio::time::timeout(PATIENCE, &mut writing).await.expect("writing ends").unwrap();
    end == Some(CALM) || (end.is_none() && !all_written)
}

async fn still_serves(cluster: &Cluster) {
    let asked = async { cluster.control().await.list_nodes(v1::ListNodesRequest::default()).await };
    tokio::time::timeout(PATIENCE, asked).await.expect("the others are served").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http2_end_the_connection_they_come_on_and_nothing_else() {
    let cluster = Cluster::start().await;
    assert!(is_cut_off(speaker(cluster.addr).await, resets()).await, "rapid reset");
    still_serves(&cluster).await;
    let begin = std::iter::once(frame(HEADERS, END_STREAM, 1, REQUEST));
    let endless = begin.chain((0..50_000).map(|_| frame(CONTINUATION, 0, 1, &[0x00, 1, b'a', 1, b'b'])));
    assert!(is_cut_off(speaker(cluster.addr).await, endless).await, "headers without end (CVE-2024-27316)");
    still_serves(&cluster).await;

    // More streams than are allowed: each is refused for itself, or the connection is.
    let many = (0..5_000u32).map(|number| frame(HEADERS, END_HEADERS, 2 * number + 1, REQUEST));
    is_cut_off(speaker(cluster.addr).await, many).await;
    still_serves(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_floods_again_and_again_is_not_let_in_for_a_while() {
    let cluster = Cluster::start().await;
    let (bad, good) = (cluster.join(NodeRole::Worker).await, cluster.join(NodeRole::Worker).await);
    let mut floods = 0;
    while let Some(stream) = speaker_as(&cluster, &bad).await {
        assert!(is_cut_off(stream, resets()).await);
        floods += 1;
        assert!(floods < 30, "it is let in for ever");
    }
    assert!(floods >= 4, "after {floods} floods: an accident is no reason");
    assert!(cluster.security.refused().crowded > 0);
    assert!(speaker_as(&cluster, &good).await.is_some(), "a node at the same address");
    // Who keeps a manager out may cost the cluster its majority.
    for _ in 0..8 {
        let stream = speaker_as(&cluster, &cluster.security).await.expect("a manager is let in");
        assert!(is_cut_off(stream, resets()).await);
    }
    still_serves(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_answers_and_never_reads_them_waits_alone() {
    let cluster = Cluster::start().await;
    for kind in [PING, SETTINGS] {
        let mut stream = speaker(cluster.addr).await;
        let payload: &[u8] = if kind == PING { &[0; 8] } else { &[] };
        let many: Vec<u8> = (0..1000).flat_map(|_| frame(kind, 0, 0, payload)).collect();
        // Until the pipes are full in both directions, or the server has had enough.
        let writing = async {
            for _ in 0..200 {
                if stream.write_all(&many).await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), writing).await;
        still_serves(&cluster).await;
    }
    // No window at all: 256 answers that cannot be sent.
    let mut stream = speaker(cluster.addr).await;
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    let calls: Vec<u8> = (0..256u32).flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, REQUEST)).collect();
    stream.write_all(&calls).await.unwrap();
    still_serves(&cluster).await;
}

/// A message in its envelope, with the length that it is said to have.
fn envelope(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    let mut body = vec![flag];
    body.extend(length.to_be_bytes());
    body.extend(message);
    body
}

fn whole(message: &[u8]) -> Vec<u8> {
    envelope(0, u32::try_from(message.len()).unwrap(), message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_beyond_all_measure_are_refused() {
    let cluster = Cluster::start().await;
    let mut channel = cluster.channel(&cluster.security).await;
    let path = "/docker.swarmkit.v1.Control/CreateService";
    let mut deep = vec![0x0b; 1_000_000];
    deep.truncate(3 << 20);
    let refused = [
        ("2 GiB are announced", envelope(0, 0x7fff_ffff, b"x"), Code::ResourceExhausted),
        ("more than is allowed", whole(&vec![0; (4 << 20) + 1]), Code::ResourceExhausted),
        // Nothing is unpacked, so there is no bomb. The code is gRPC's own for it (`compression.md`).
        ("packed", envelope(1, 4, b"bomb"), Code::Internal),
        ("a million deep", whole(&deep), Code::InvalidArgument),
        // spec.annotations.name
        ("no UTF-8", whole(&[0x0a, 5, 0x0a, 3, 0x0a, 1, 0xff]), Code::InvalidArgument),
        ("cut off", whole(&[0x0a, 0x7f, 0x0a]), Code::InvalidArgument),
    ];
    for (what, body, wanted) in refused {
        let (_, code) = ask(&mut channel, Method::POST, path, &body).await;
        assert_eq!(code, Some(wanted), "{what}");
        // The same where the method reads a stream of them, and where another manager's raft is meant, which may say more at once.
        for path in ["/docker.swarmkit.v1.LogBroker/PublishLogs", "/skep.v1.Raft/Call"] {
            if what != "more than is allowed" || !path.contains("Raft") {
                let (_, code) = ask(&mut channel, Method::POST, path, &body).await;
                assert_eq!(code, Some(wanted), "{what} {path}");
            }
        }
    }
    let mut odd = service("odd", 1);
    odd.endpoint = Some(v1::EndpointSpec { mode: 4711, ..Default::default() });
    let refusal = cluster.control().await.create_service(v1::CreateServiceRequest { spec: Some(odd) }).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument, "an enumeration knows its values: {refusal:?}");
    still_serves(&cluster).await;
}

/// A field with so many bytes in it.
fn holding(key: u8, inner: &[u8]) -> Vec<u8> {
    let mut field = vec![key];
    field.extend(varint(inner.len() as u64));
    field.extend(inner);
    field
}

/// Messages that are nothing but entries: the method, what it is sent, and whether that is more than it may become.
fn heavy() -> Vec<(&'static str, Vec<u8>, bool)> {
    let most = (4 << 20) - 100;
    let many = |key: u8, bytes: usize| [key, 0].repeat(bytes / 2);
    vec![
        // updates
        ("/docker.swarmkit.v1.Dispatcher/UpdateTaskStatus", many(0x1a, most), true),
        // filters.names
        ("/docker.swarmkit.v1.Control/ListNodes", holding(0x0a, &many(0x0a, most)), true),
        // messages
        ("/docker.swarmkit.v1.LogBroker/PublishLogs", many(0x12, most), true),
        // spec.task.container.mounts
        ("/docker.swarmkit.v1.Control/CreateService", holding(0x0a, &holding(0x12, &holding(0x0a, &many(0x42, most)))), true),
        // As many as may be.
        ("/docker.swarmkit.v1.Dispatcher/UpdateTaskStatus", many(0x1a, 12_000), false),
        ("/docker.swarmkit.v1.Control/ListNodes", holding(0x0a, &many(0x0a, 120_000)), false),
    ]
}

/// A line of `/proc/self/status`, in bytes.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)).expect("the kernel tells it");
    found.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

const CASE: &str = "SKEP_TEST_HEAVY";

#[test]
fn no_message_of_entries_takes_more_than_eight_megabytes() {
    for case in 0..heavy().len() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "abuse::what_a_heavy_message_takes"])
            .env(CASE, case.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && said.contains("at most"), "case {case}: {said}");
    }
}

/// In a process of its own, where nobody else takes memory.
#[test]
#[ignore = "a part of the test above, which starts it"]
fn what_a_heavy_message_takes() {
    let case = std::env::var(CASE).expect("the test above says which message").parse::<usize>().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::start().await;
        let mut channel = cluster.channel(&cluster.security).await;
        let (path, message, is_too_much) = heavy().swap_remove(case);
        let body = bytes::Bytes::from(whole(&message));
        drop(message);
        // What the first calls take for good.
        for _ in 0..20 {
            ask(&mut channel, Method::POST, path, &whole(&[])).await;
        }
        let before = memory("VmRSS");
        // The greatest there was is forgotten (man 5 proc).
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (_, code) = ask_bytes(&mut channel, Method::POST, path, body).await;
        let taken = memory("VmHWM").saturating_sub(before);
        println!("{path}: at most {taken} bytes, {code:?}");
        assert_eq!(code == Some(Code::ResourceExhausted), is_too_much, "{path}: {code:?}");
        assert!(taken <= 8 << 20, "{path} takes {taken} bytes");
        still_serves(&cluster).await;
    });
}

/// Fields that could be some message's: nested, of every wire type, with lengths that fit more often than not.
fn anything(dice: &mut Dice, depth: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..dice.below(5) {
        let (field, kind) = (1 + dice.below(12), dice.below(7));
        bytes.extend(varint(field << 3 | kind));
        match kind {
            0 => bytes.extend(varint(if dice.below(2) == 0 { dice.below(300) } else { dice.extreme() })),
            1 => bytes.extend(dice.below(u64::MAX).to_le_bytes()),
            5 => bytes.extend((dice.below(1 << 32) as u32).to_le_bytes()),
            2 => {
                let is_end = depth == 0 || dice.below(3) == 0;
                let inner = if is_end { (0..dice.below(20)).map(|_| dice.below(256) as u8).collect() } else { anything(dice, depth - 1) };
                let lie = if dice.below(10) == 0 { dice.below(1000) } else { inner.len() as u64 };
                bytes.extend(varint(lie));
                bytes.extend(inner);
            }
            _ => {}
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_makes_a_method_panic_or_hang() {
    let cluster = Cluster::start().await;
    let mut channel = cluster.channel(&cluster.security).await;
    let mut dice = Dice::new();
    let before = cluster.store.view().nodes().count();
    for path in every_method() {
        for _ in 0..dice.rounds(12) {
            let message = anything(&mut dice, 4);
            let (status, code) = ask(&mut channel, Method::POST, &path, &whole(&message)).await;
            // tonic answers a handler that panicked by ending the stream, which `ask` does not survive.
            assert!(status.is_success() && code != Some(Code::Unknown) || path.contains("Control/"), "{path} {message:02x?}: {code:?}");
        }
    }
    still_serves(&cluster).await;
    assert_eq!(cluster.store.view().nodes().count(), before);
    let mut control = cluster.control().await;
    control.create_service(v1::CreateServiceRequest { spec: Some(service("after", 1)) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_no_assignments_of_another_and_no_state_goes_back() {
    let cluster = Cluster::start().await;
    let mut agent = cluster.agent().await;
    let mut control = cluster.control().await;
    let created = control.create_service(v1::CreateServiceRequest { spec: Some(service("web", 1)) }).await.unwrap().into_inner();
    let id = created.service.unwrap().id;
    let running = |tasks: &Vec<v1::Task>| crate::support::running(tasks) == 1;
    let task = eventually("running", || tasks(&control, &id), running).await.remove(0);

    // With the session of the one and the certificate of the other.
    let (_, thief) = cluster.another_agent().await;
    let session_id = agent.session_id.clone();
    let mut client = thief.client.clone();
    let stolen = client.assignments(v1::AssignmentsRequest { session_id: session_id.clone() }).await.unwrap_err();
    assert_eq!(stolen.code(), Code::InvalidArgument, "{stolen:?}");
    let stolen = client.heartbeat(v1::HeartbeatRequest { session_id: session_id.clone() }).await.unwrap_err();
    assert_eq!(stolen.code(), Code::InvalidArgument, "{stolen:?}");
    let mut farewell = Request::new(v1::HeartbeatRequest { session_id });
    farewell.metadata_mut().insert("skep-farewell", "left".parse().unwrap());
    assert_eq!(client.heartbeat(farewell).await.unwrap_err().code(), Code::InvalidArgument);

    let version = cluster.store.view().version();
    agent.report(&task.id, v1::TaskState::Preparing).await.unwrap();
    // Reports are written one after the other: when a later one is there, the earlier one was looked at.
    agent.report(&task.id, v1::TaskState::Failed).await.unwrap();
    let ended = |tasks: &Vec<v1::Task>| tasks.iter().any(|other| other.id == task.id && state(other) == v1::TaskState::Failed as i32);
    eventually("failed", || tasks(&control, &id), ended).await;
    assert!(cluster.store.view().version() > version);
    agent.report(&task.id, v1::TaskState::Running).await.unwrap();
    still_serves(&cluster).await;
    let now = control.get_task(v1::GetTaskRequest { task_id: task.id.clone() }).await.unwrap().into_inner().task.unwrap();
    assert_eq!(state(&now), v1::TaskState::Failed as i32, "an ended task does not run again");
}

fn state(task: &v1::Task) -> i32 {
    task.status.as_ref().map_or(0, |status| status.state)
}
