//! Proposals per second of one voter, for 1 and 64 clients: `cargo run --release -p skep-store --example propose [DIR]`.

use skep_store::{Alone, Member, Store, StoreConfig};
use skep_types::{Action, Node, NodeId, Object};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const EACH: Duration = Duration::from_secs(3);

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("getrusage of oneself works");
    let time =
        |value: nix::sys::time::TimeVal| Duration::from_micros(u64::try_from(value.tv_sec() * 1_000_000 + value.tv_usec()).unwrap_or(0));
    time(usage.user_time()) + time(usage.system_time())
}

#[tokio::main]
async fn main() {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into).join(format!("skep-propose-{}", std::process::id()));
    let store = Store::bootstrap(StoreConfig::new(dir.join("raft")), 1, Member::default(), Arc::new(Alone)).await.expect("a new store");
    let numbers = Arc::new(AtomicU64::new(0));
    for clients in [1, 64, 256] {
        let (begin, cpu_before, syncs) = (Instant::now(), cpu(), store.status().syncs);
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let (store, numbers) = (store.clone(), Arc::clone(&numbers));
            running.spawn(async move {
                let mut times = Vec::new();
                while begin.elapsed() < EACH {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    let mut node = Node::new(NodeId::for_test(number % 1000));
                    node.status.message = format!("{number:0>400}");
                    let at = Instant::now();
                    let id = node.id.to_string();
                    let actions = vec![
                        Action::Remove { kind: skep_types::Kind::Node, id, version: None },
                        Action::Create(Object::Node(Arc::new(node))),
                    ];
                    store.propose(actions).await.expect("the only voter commits");
                    times.push(at.elapsed());
                }
                times
            });
        }
        let mut times = Vec::new();
        while let Some(more) = running.join_next().await {
            times.extend(more.expect("clients do not panic"));
        }
        times.sort_unstable();
        let seconds = begin.elapsed().as_secs_f64();
        let rate = times.len() as f64 / seconds;
        println!(
            "{clients:4} clients: {rate:8.0} proposals/s, p50 {:?}, p99 {:?}, {:.0} syncs/s, {:.0} proposals per CPU second",
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            (store.status().syncs - syncs) as f64 / seconds,
            times.len() as f64 / (cpu() - cpu_before).as_secs_f64(),
        );
    }
    store.shutdown().await;
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        eprintln!("could not remove {}: {error}", dir.display());
    }
}
