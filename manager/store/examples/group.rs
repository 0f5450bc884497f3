//! Three managers in one process: how long a write takes, and until the next write after a leader dies or hands over.
//!
//! `cargo run --release -p skep-store --example group [ROUNDS]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};
use support::{Cluster, create};

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!("{what}: {} times, p50 {:?}, p90 {:?}, p99 {:?}, longest {:?}", times.len(), at(50), at(90), at(99), at(100));
}

#[tokio::main]
async fn main() {
    let rounds: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    // The times that managers really use.
    let cluster = Cluster::with(3, skep_store::Timing::default()).await;
    let mut writes = Vec::new();
    let leader = cluster.leader().await;
    for number in 0..500 {
        let begin = Instant::now();
        leader.propose(create(number)).await.expect("the leader stays");
        writes.push(begin.elapsed());
    }
    print("write, one client", writes);
    let (mut deaths, mut transfers) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let leader = cluster.leader().await;
        let begin = Instant::now();
        leader.hand_over(Duration::from_secs(3)).await.expect("others are there");
        cluster.write(10_000 + round).await;
        transfers.push(begin.elapsed());

        tokio::time::sleep(Duration::from_millis(500)).await;
        let leader = cluster.leader().await.raft_id();
        cluster.isolate(leader);
        let begin = Instant::now();
        cluster.write(20_000 + round).await;
        deaths.push(begin.elapsed());
        cluster.stop(leader).await;
        cluster.net.heal();
        cluster.start(leader).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    print("next write after the leadership was handed over", transfers);
    print("next write after the leader was gone", deaths);
    cluster.end_all().await;
}
