//! What two genuine `swarmctl` sent, recorded from `swarmctl service inspect x` over their default socket `/var/run/swarmd.sock`,
//! against the local socket. It was seen to work from end to end with the real programs; these recordings keep it so without Go.

use crate::*;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

struct Recording {
    /// The TLS record with the ClientHello.
    hello: &'static str,
    /// All that came after the handshake, decrypted.
    calls: &'static str,
    /// Methods of the control API in these calls.
    methods: &'static [&'static str],
    /// What becomes of their authority.
    authority: &'static str,
}

/// grpc-go 1.79, Go 1.25: the name is `%2Fvar%2Frun%2Fswarmd.sock`, key shares for X25519MLKEM768 and X25519; four calls on one
/// connection, the later ones by HPACK's dynamic table.
const OF_2026: Recording = Recording {
    hello: include_str!("genuine_tests/client_hello.hex"),
    calls: include_str!("genuine_tests/calls.hex"),
    methods: &["GetService", "ListServices", "ListTasks", "GetNode"],
    authority: "-2Fvar-2Frun-2Fswarmd.sock",
};
/// grpc-go 1.53 of early 2024: the name is `/var/run/swarmd.sock`; it ended after two calls, which were refused then.
const OF_2024: Recording = Recording {
    hello: include_str!("genuine_tests/client_hello_2024.hex"),
    calls: include_str!("genuine_tests/calls_2024.hex"),
    methods: &["GetService", "ListServices"],
    authority: "-var-run-swarmd.sock",
};
const RECORDINGS: [Recording; 2] = [OF_2026, OF_2024];

const PATIENCE: Duration = Duration::from_secs(60);

fn bytes(recording: &str) -> Vec<u8> {
    hex::decode(recording.split_whitespace().collect::<String>()).unwrap()
}

fn acceptor(door: Door) -> Acceptor {
    let now = std::time::SystemTime::now();
    let root = RootCa::generate(now).unwrap();
    let (node, cluster) = (skep_types::NodeId::for_test(1), skep_types::ClusterId::for_test(2));
    Acceptor::new(&SecurityConfig::new(Identity::of_first_manager(&root, node, cluster, DEFAULT_LIFETIME, now).unwrap()).unwrap(), door)
}

/// The head of the first TLS record that answers the recorded ClientHello, and the beginning of its content.
async fn answer_to_hello(hello: &str, door: Door) -> [u8; 5 + 6 + 32] {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    near.write_all(&bytes(hello)).await.unwrap();
    let mut answer = [0; 5 + 6 + 32];
    let acceptor = acceptor(door);
    tokio::select! {
        // Never ends well: the recording knows no keys.
        refusal = acceptor.accept(far) => {
            drop(refusal);
            let _ = near.read(&mut answer).await.unwrap();
        }
        read = near.read_exact(&mut answer) => { read.unwrap(); }
    }
    answer
}

#[tokio::test]
async fn its_hello_is_answered_on_the_local_socket() {
    for recording in RECORDINGS {
        let answer = timeout(PATIENCE, answer_to_hello(recording.hello, Door::Local)).await.unwrap();
        assert_eq!((answer[0], answer[5]), (22, 2), "a handshake record with a ServerHello: {answer:?}");
        // A HelloRetryRequest (its random begins so, RFC 8446 §4.1.3) would bring a second ClientHello, whose name nobody hides.
        assert_ne!(answer[11..15], [0xcf, 0x21, 0xad, 0x74]);
    }
}

/// Shows the trap: the day this fails, the module `sni` can go.
#[tokio::test]
async fn its_hello_is_refused_elsewhere() {
    for recording in RECORDINGS {
        let answer = timeout(PATIENCE, answer_to_hello(recording.hello, Door::Remote)).await.unwrap();
        assert_eq!((answer[0], answer[6]), (21, 47), "alert illegal_parameter: {answer:?}");
    }
}

/// A call of `/` without authority, in HPACK's static table alone: whoever gets it has gone through all before it.
const LAST_CALL: [u8; 12] = [0, 0, 3, 1, 0x5, 0, 0, 0, 99, 0x83, 0x87, 0x84];

/// The paths and authorities that h2 makes of a connection, up to the last call.
async fn served<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> Vec<(String, String)> {
    let mut server = h2::server::handshake(io).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let (request, mut answer) = server.accept().await.expect("the client is still there").unwrap();
        let uri = request.uri();
        if uri.path() == "/" {
            return seen;
        }
        seen.push((uri.path().to_owned(), uri.authority().unwrap().to_string()));
        let _ = answer.send_response(http::Response::new(()), true);
    }
}

async fn replayed(calls: &str, mut io: impl AsyncWrite + Unpin) -> impl AsyncWrite {
    io.write_all(&[&bytes(calls)[..], &LAST_CALL].concat()).await.unwrap();
    io.flush().await.unwrap();
    io
}

#[tokio::test]
async fn its_calls_are_served_on_the_local_socket() {
    for recording in RECORDINGS {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let client = async { replayed(recording.calls, Connector::local().unwrap().connect(near).await.unwrap().0).await };
        let acceptor = acceptor(Door::Local);
        let (server, _client) = tokio::join!(acceptor.accept(far), client);
        let seen = timeout(PATIENCE, served(server.unwrap())).await.unwrap();
        let path = |method: &&str| format!("/docker.swarmkit.v1.Control/{method}");
        let expected: Vec<_> = recording.methods.iter().map(|method| (path(method), recording.authority.to_owned())).collect();
        assert_eq!(seen, expected);
    }
}

/// Shows the trap: the day this fails, the module `authority` can go.
#[tokio::test]
async fn h2_by_itself_serves_none_of_its_calls() {
    for recording in RECORDINGS {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let _client = replayed(recording.calls, near).await;
        assert_eq!(timeout(PATIENCE, served(far)).await.unwrap(), []);
    }
}
