//! Managers cut off, stopped, started and told to hand over at random, while clients keep a journal of what was acknowledged.
//!
//! `SKEP_CHAOS_SEED` repeats a run, `SKEP_CHAOS_SECONDS` makes it longer.

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep_types::{ClusterView, NodeId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Cluster, create};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Writes one node after the other wherever it can; gives what was acknowledged.
async fn client(cluster: Arc<Cluster>, number: u64, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut journal = Vec::new();
    for next in number * 100_000.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // Any manager that takes it: also one that wrongly thinks that it leads.
        for store in cluster.all() {
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), store.propose(create(next))).await {
                journal.push(next);
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    journal
}

async fn disturb(cluster: &Cluster, random: &mut StdRng, count: u64) -> String {
    let ids = cluster.ids();
    let victim = ids[random.random_range(0..ids.len())];
    match random.random_range(0..6) {
        0 => {
            cluster.isolate(victim);
            format!("{victim} isolated")
        }
        1 => {
            let other = ids[random.random_range(0..ids.len())];
            cluster.net.cut(victim, other);
            format!("{victim} not heard by {other}")
        }
        2 => {
            cluster.net.heal();
            "healed".into()
        }
        3 if ids.len() as u64 * 2 > count + 1 => {
            cluster.stop(victim).await;
            format!("{victim} stopped")
        }
        4 => {
            let leader = cluster.all().into_iter().find(|store| store.leadership().borrow().is_leader);
            let Some(leader) = leader else { return "no leader".into() };
            format!("{} hands over: {:?}", leader.raft_id(), leader.hand_over(Duration::from_millis(700)).await.ok())
        }
        _ => {
            let Some(id) = (1..=count).find(|id| !ids.contains(id)) else { return "nothing".into() };
            cluster.start(id).await;
            format!("{id} started")
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_whatever_happens_to_managers() {
    let seed = setting("SKEP_CHAOS_SEED", rand::random());
    let time = Duration::from_secs(setting("SKEP_CHAOS_SECONDS", 12));
    println!("SKEP_CHAOS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let count = 3 + 2 * (seed % 2);
    let cluster = Arc::new(Cluster::of(count).await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for number in 1..=4 {
        clients.spawn(client(Arc::clone(&cluster), number, Arc::clone(&stop)));
    }
    let begin = Instant::now();
    while begin.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..900))).await;
        println!("{:6.2} s: {}", begin.elapsed().as_secs_f64(), disturb(&cluster, &mut random, count).await);
    }
    cluster.net.heal();
    for id in 1..=count {
        if !cluster.ids().contains(&id) {
            cluster.start(id).await;
        }
    }
    cluster.write(9_000_000).await;
    stop.store(true, Ordering::Relaxed);
    let mut journal = BTreeSet::new();
    while let Some(written) = clients.join_next().await {
        journal.extend(written.unwrap());
    }
    cluster.same_everywhere().await;
    let view = cluster.store(1).view();
    let lost: Vec<&u64> = journal.iter().filter(|number| view.node(&NodeId::for_test(**number)).is_none()).collect();
    println!("{} acknowledged, {} there, term {}", journal.len(), view.nodes().count(), cluster.store(1).status().term);
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    // State of a fresh start is the same, too.
    let hash = cluster.store(1).state_hash();
    cluster.stop(1).await;
    cluster.start(1).await;
    cluster.same_everywhere().await;
    assert_eq!(cluster.store(1).state_hash(), hash);
    Arc::into_inner(cluster).unwrap().end_all().await;
}
