//! Who leads when managers die, are cut off, come back, hand over or were removed.

mod support;

use skep_store::{ProposeError, StoreError};
use skep_types::{ClusterView, NodeId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{BEAT, Cluster, LONGEST, PATIENCE, PATIENT, create, until};

fn term(cluster: &Cluster) -> u64 {
    cluster.all().iter().map(|store| store.status().term).max().unwrap()
}

async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_when_leaders_die_one_after_the_other() {
    let cluster = Cluster::of(5).await;
    for number in 0..20 {
        cluster.write(number).await;
    }
    for round in 0..2 {
        let leader = cluster.leader().await.raft_id();
        cluster.stop(leader).await;
        let outage = cluster.outage(100 + round).await;
        println!("leader {leader} gone: written again after {outage:?}");
        for number in 0..20 {
            cluster.write(200 + 100 * round + number).await;
        }
    }
    for id in 1..=5 {
        if !cluster.ids().contains(&id) {
            cluster.start(id).await;
        }
    }
    cluster.same_everywhere().await;
    assert_eq!(cluster.store(1).view().nodes().count(), 62);
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_cut_off_comes_back_without_raising_the_term() {
    let cluster = Cluster::with(3, PATIENT).await;
    cluster.write(1).await;
    let (leader, term_before) = (cluster.leader().await.raft_id(), term(&cluster));
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.isolate(follower);
    // Both others, and again: each time is one at which it might have held an election.
    until("it misses its leader", || cluster.calls(follower, "pre-vote") > 3).await;
    assert!(cluster.store(follower).status().leader_heard.unwrap() > PATIENT.election_min);
    cluster.write(2).await;
    cluster.net.heal();
    cluster.same_everywhere().await;
    sleep(2 * LONGEST).await;
    assert_eq!(term(&cluster), term_before, "nobody raised the term");
    assert_eq!(cluster.leader().await.raft_id(), leader);
    assert!(!cluster.net.calls.lock().unwrap().contains_key(&(follower, "vote")));
    // A follower that is started again raises nothing either.
    cluster.stop(follower).await;
    cluster.start(follower).await;
    cluster.write(3).await;
    cluster.same_everywhere().await;
    sleep(2 * LONGEST).await;
    assert_eq!((term(&cluster), cluster.leader().await.raft_id()), (term_before, leader));
    assert_eq!(cluster.calls(follower, "vote"), 0);
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_cannot_hear_its_leader_does_not_depose_it() {
    let cluster = Cluster::with(3, PATIENT).await;
    cluster.write(1).await;
    let (leader, term_before) = (cluster.leader().await.raft_id(), term(&cluster));
    let deaf = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    // It hears the third manager, and everybody hears it.
    cluster.net.cut(leader, deaf);
    for number in 2.. {
        cluster.write(number).await;
        sleep(BEAT).await;
        if cluster.calls(deaf, "pre-vote") > 3 {
            break;
        }
        assert!(number < 600, "it never misses its leader");
    }
    assert_eq!((term(&cluster), cluster.leader().await.raft_id()), (term_before, leader));
    cluster.net.heal();
    cluster.same_everywhere().await;
    assert_eq!((term(&cluster), cluster.leader().await.raft_id()), (term_before, leader));
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hears_nobody_gives_way_although_everybody_hears_it() {
    let cluster = Cluster::of(3).await;
    cluster.write(1).await;
    let old = cluster.leader().await;
    for other in cluster.ids() {
        cluster.net.cut(other, old.raft_id());
    }
    let begin = Instant::now();
    cluster.write(2).await;
    println!("written again after {:?}", begin.elapsed());
    until("the old leader does not lead", || !old.leadership().borrow().is_leader).await;
    assert_ne!(cluster.leader().await.raft_id(), old.raft_id());
    cluster.net.heal();
    cluster.same_everywhere().await;
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_majority_stops_leading_and_goes_on_when_it_is_back() {
    let cluster = Cluster::of(3).await;
    cluster.write(1).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader.raft_id()).collect();
    for id in &others {
        cluster.stop(*id).await;
    }
    until("it does not lead", || !leader.leadership().borrow().is_leader).await;
    assert!(matches!(leader.propose(create(2)).await, Err(ProposeError::NotLeader { .. })));
    cluster.start(others[0]).await;
    cluster.write(3).await;
    cluster.start(others[1]).await;
    cluster.same_everywhere().await;
    assert!(leader.view().node(&NodeId::for_test(2)).is_none());
    cluster.end_all().await;
}

/// For the next leader to be there: it comes at once, unless the machine stands still.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_with_everything_in_it() {
    for count in [3, 5] {
        let cluster = Cluster::with(count, PATIENT).await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = tokio::task::JoinSet::new();
        let cluster = Arc::new(cluster);
        for client in 0..4 {
            let (cluster, stop) = (Arc::clone(&cluster), Arc::clone(&stop));
            writers.spawn(async move {
                let mut journal = Vec::new();
                let mut longest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let number = 1000 * (client + 1) + journal.len() as u64;
                    longest = longest.max(cluster.outage(number).await);
                    journal.push(number);
                }
                (journal, longest)
            });
        }
        for _ in 0..4 {
            sleep(Duration::from_millis(300)).await;
            let leader = cluster.leader().await;
            let begin = Instant::now();
            let next = leader.hand_over(LIMIT).await.unwrap();
            assert_ne!(next, leader.raft_id());
            println!("{count} managers: handed from {} to {next} within {:?}", leader.raft_id(), begin.elapsed());
            until("the next one leads", || cluster.store(next).leadership().borrow().is_leader).await;
        }
        stop.store(true, Ordering::Relaxed);
        let mut journal = Vec::new();
        while let Some(ended) = writers.join_next().await {
            let (written, longest) = ended.unwrap();
            println!("longest write {longest:?}");
            journal.extend(written);
        }
        cluster.same_everywhere().await;
        let view = cluster.store(1).view();
        assert_eq!(view.nodes().count(), journal.len());
        assert!(journal.iter().all(|number| view.node(&NodeId::for_test(*number)).is_some()));
        Arc::into_inner(cluster).unwrap().end_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_finds_no_successor_goes_on() {
    let cluster = Cluster::with(1, PATIENT).await;
    assert!(matches!(cluster.store(1).hand_over(Duration::from_secs(1)).await, Err(StoreError::NoSuccessor)));
    cluster.write(1).await;
    cluster.join(2).await;
    cluster.join(3).await;
    let leader = cluster.leader().await;
    let followers: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader.raft_id()).collect();
    assert!(matches!(cluster.store(followers[0]).hand_over(Duration::from_secs(1)).await, Err(StoreError::NotLeader { .. })));
    for follower in &followers {
        cluster.net.cut(*follower, leader.raft_id());
        cluster.net.cut(leader.raft_id(), *follower);
    }
    assert!(matches!(leader.hand_over(Duration::from_millis(200)).await, Err(StoreError::NotTaken)));
    cluster.net.heal();
    cluster.write(2).await;
    cluster.same_everywhere().await;
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_follower_is_passed_over_when_leadership_is_handed_over() {
    let cluster = Cluster::with(3, PATIENT).await;
    cluster.write(1).await;
    for _ in 0..2 {
        let leader = cluster.leader().await;
        let dead = cluster.ids().into_iter().find(|id| *id != leader.raft_id()).unwrap();
        cluster.stop(dead).await;
        // All have the same log: only its silence tells that it is dead.
        sleep(PATIENCE + 2 * BEAT).await;
        let next = leader.hand_over(LIMIT).await.unwrap();
        assert_ne!(next, dead);
        until("the next one leads", || cluster.store(next).leadership().borrow().is_leader).await;
        cluster.start(dead).await;
        cluster.write(100 + dead).await;
        cluster.same_everywhere().await;
    }
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_manager_disturbs_nobody_and_learns_that_it_was_removed() {
    let cluster = Cluster::with(3, PATIENT).await;
    cluster.write(1).await;
    let leader = cluster.leader().await;
    let gone = cluster.ids().into_iter().find(|id| *id != leader.raft_id()).unwrap();
    let mut members = leader.members();
    members.mark_unchanged();
    leader.remove_member(gone).await.unwrap();
    let term_before = term(&cluster);
    let mut removed = cluster.store(gone).removed();
    tokio::time::timeout(Duration::from_secs(60), removed.wait_for(|removed| *removed)).await.unwrap().unwrap();
    assert!(cluster.store(gone).status().removed && !leader.status().removed);
    assert!(members.has_changed().unwrap() && members.borrow().iter().all(|member| member.raft_id != gone));
    sleep(PATIENCE + LONGEST).await;
    cluster.write(2).await;
    assert_eq!((leader.status().term, cluster.leader().await.raft_id()), (term_before, leader.raft_id()));
    assert!(!cluster.net.calls.lock().unwrap().contains_key(&(gone, "vote")));
    // It stays quiet after a restart, and takes part again when it is added anew.
    cluster.stop(gone).await;
    cluster.start(gone).await;
    sleep(PATIENCE + LONGEST).await;
    assert_eq!((leader.status().term, cluster.calls(gone, "vote")), (term_before, 0));
    leader.add_learner(gone, support::member(gone)).await.unwrap();
    leader.add_voter(gone).await.unwrap();
    cluster.same_everywhere().await;
    until("it knows", || !cluster.store(gone).status().removed).await;
    cluster.end_all().await;
}

/// Who does not know of it asks for votes, and is refused by a majority before the leader, which alone knows, has answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_was_removed_while_it_was_away_learns_it_from_a_leader_that_answers_last() {
    let cluster = Cluster::with(5, PATIENT).await;
    cluster.write(1).await;
    let leader = cluster.leader().await;
    let gone = cluster.ids().into_iter().find(|id| *id != leader.raft_id()).unwrap();
    cluster.stop(gone).await;
    leader.remove_member(gone).await.unwrap();
    *cluster.net.late.lock().unwrap() = Some(leader.raft_id());
    cluster.start(gone).await;
    until("it knows", || cluster.store(gone).status().removed).await;
    assert_eq!(cluster.calls(gone, "vote"), 0);
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_is_followed_by_another() {
    let cluster = Cluster::of(3).await;
    cluster.write(1).await;
    let leader = cluster.leader().await;
    leader.remove_member(leader.raft_id()).await.unwrap();
    until("it does not lead", || !leader.leadership().borrow().is_leader).await;
    cluster.net.stores.lock().unwrap().remove(&leader.raft_id());
    leader.shutdown().await;
    cluster.write(2).await;
    assert_eq!(cluster.leader().await.members().borrow().len(), 2);
    cluster.same_everywhere().await;
    cluster.end_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_halves_do_not_both_write() {
    let cluster = Cluster::of(5).await;
    cluster.write(1).await;
    let old = cluster.leader().await;
    let beside = cluster.ids().into_iter().find(|id| *id != old.raft_id()).unwrap();
    for id in cluster.ids().into_iter().filter(|id| ![old.raft_id(), beside].contains(id)) {
        for minor in [old.raft_id(), beside] {
            cluster.net.cut(id, minor);
            cluster.net.cut(minor, id);
        }
    }
    let lost = tokio::spawn({
        let old = old.clone();
        async move { old.propose(create(500)).await }
    });
    until("the larger half has a leader", || {
        cluster.all().iter().any(|store| store.leadership().borrow().is_leader && ![old.raft_id(), beside].contains(&store.raft_id()))
    })
    .await;
    until("the smaller has none", || !old.leadership().borrow().is_leader).await;
    for number in 2..20 {
        cluster.write(number).await;
    }
    assert!(lost.await.unwrap().is_err());
    cluster.net.heal();
    cluster.same_everywhere().await;
    assert!(old.view().node(&NodeId::for_test(500)).is_none());
    assert_eq!(old.view().nodes().count(), 19);
    cluster.end_all().await;
}

/// A disk that takes longer for each write than anybody waits for a leader slows writes down and costs nobody the leadership.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_costs_nobody_the_leadership() {
    let cluster = Cluster::with(3, PATIENT).await;
    cluster.write(1).await;
    let leader = cluster.leader().await;
    let term_before = term(&cluster);
    for slow in cluster.ids() {
        cluster.store(slow).slow_down(PATIENCE + PATIENCE / 4);
        for number in 0..2 {
            cluster.write(slow * 100 + number).await;
        }
        cluster.store(slow).slow_down(Duration::ZERO);
        assert_eq!((term(&cluster), cluster.leader().await.raft_id()), (term_before, leader.raft_id()), "slow: {slow}");
    }
    cluster.same_everywhere().await;
    cluster.end_all().await;
}

/// Writes that do not come to an end do cost it: a leader that cannot confirm anything is of no use.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_hangs_is_followed_by_another() {
    let cluster = Cluster::of(3).await;
    cluster.write(1).await;
    let old = cluster.leader().await;
    old.slow_down(Duration::from_secs(25));
    let begin = Instant::now();
    cluster.write(2).await;
    println!("written again after {:?}", begin.elapsed());
    assert_ne!(cluster.leader().await.raft_id(), old.raft_id());
    old.slow_down(Duration::ZERO);
    cluster.write(3).await;
    cluster.same_everywhere().await;
    cluster.end_all().await;
}

/// What a power cut leaves of the leader: its followers have entries that it had not yet written itself.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_lost_its_last_writes_does_not_write_others_in_their_place() {
    for round in 0..4 {
        let cluster = Cluster::of(3).await;
        for number in 0..10 {
            cluster.write(number).await;
        }
        let leader = cluster.leader().await;
        let id = leader.raft_id();
        let before = leader.status().last_log_index.unwrap();
        leader.slow_down(Duration::from_secs(2));
        let proposed: Vec<_> = (100..103)
            .map(|number| {
                let leader = leader.clone();
                tokio::spawn(async move { leader.propose(create(number)).await })
            })
            .collect();
        until("a follower has more than the leader's disk", || {
            cluster.all().iter().any(|store| store.raft_id() != id && store.status().last_log_index > Some(before))
        })
        .await;
        assert!(proposed.iter().all(|proposal| !proposal.is_finished()), "nothing is acknowledged before the leader has it, too");
        let applied = |store: &skep_store::Store| store.view().node(&NodeId::for_test(100)).is_some();
        assert!(!cluster.all().iter().any(applied), "nor applied anywhere");
        // The disk as it is now, and the manager away.
        let (dir, image) = (cluster.dir.path().join(id.to_string()), cluster.dir.path().join("image"));
        let copied = std::process::Command::new("cp").arg("-a").arg(&dir).arg(&image).status().unwrap();
        assert!(copied.success());
        let mark = cluster.dir.path().join(format!("{id}.mark"));
        let marked = std::fs::read(&mark).unwrap();
        cluster.isolate(id);
        cluster.stop(id).await;
        drop(leader);
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::rename(&image, &dir).unwrap();
        std::fs::write(&mark, marked).unwrap();
        if round % 2 == 0 {
            // Back before anybody else was elected: it must not go on where it was.
            cluster.net.heal();
            cluster.start(id).await;
        }
        for number in 200..230 {
            cluster.write(number).await;
        }
        if round % 2 == 1 {
            cluster.net.heal();
            cluster.start(id).await;
        }
        cluster.write(300).await;
        cluster.same_everywhere().await;
        assert_eq!(cluster.all().iter().filter(|store| store.view().node(&NodeId::for_test(229)).is_some()).count(), 3);
        cluster.end_all().await;
    }
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_voters_that_was_left_half_way_is_finished() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let store = skep_store::Store::join(support::config(cluster.dir.path(), 4), 4, cluster.end(4)).await.unwrap();
    cluster.net.stores.lock().unwrap().insert(4, store);
    leader.add_learner(4, support::member(4)).await.unwrap();
    // Whoever asked for it goes away before the first of the two entries is confirmed.
    leader.slow_down(Duration::from_millis(400));
    let change = tokio::spawn({
        let leader = leader.clone();
        async move { leader.add_voter(4).await }
    });
    until("it has begun", || leader.status().changing).await;
    change.abort();
    leader.slow_down(Duration::ZERO);
    cluster.write(1).await;
    assert!(leader.status().changing, "nobody else finishes it");
    until("it is finished", || !leader.status().changing).await;
    let voters = leader.members().borrow().iter().filter(|member| member.voter).count();
    assert_eq!(voters, 4);
    cluster.same_everywhere().await;
    cluster.end_all().await;
}
