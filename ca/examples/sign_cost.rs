//! What letting a node in costs the CA: `cargo run --release -p skep-ca --example sign_cost`.

use skep_ca::{DEFAULT_LIFETIME, NodeKey, NodeRole, RootCa, Subject, check_request};
use skep_types::{ClusterId, NodeId};
use std::time::SystemTime;

const TIMES: u32 = 2_000;

fn each(what: &str, mut work: impl FnMut()) {
    let before = cpu_nanos();
    (0..TIMES).for_each(|_| work());
    let one = (cpu_nanos() - before) / u64::from(TIMES);
    println!("{what:<40} {:>8.1} us of CPU", one as f64 / 1e3);
}

/// What this thread has computed so far; machines that measure are rarely quiet.
fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells");
    text.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).expect("its first field is nanoseconds on a CPU")
}

fn main() {
    let now = SystemTime::now();
    let root = RootCa::generate(now).expect("a root");
    let request = NodeKey::generate().and_then(|key| key.request()).expect("a request");
    let subject = Subject { node: NodeId::for_test(1), role: NodeRole::Worker, cluster: ClusterId::for_test(2) };
    let chain = root.issue(request.as_bytes(), &subject, DEFAULT_LIFETIME, now).expect("a certificate").chain_pem;
    let (pem, key) = (root.bundle().pem().to_owned(), root.key_pem());
    each("check a request", || check_request(request.as_bytes()).expect("a good request"));
    each("check it and sign", || drop(root.issue(request.as_bytes(), &subject, DEFAULT_LIFETIME, now).expect("a certificate")));
    each("verify a certificate", || root.bundle().verify_pem(&chain, now).expect("a good certificate"));
    each("read the root and its key", || drop(RootCa::load(&pem, &key).expect("the root")));
}
