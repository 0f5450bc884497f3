//! What is read is what was written, and a change costs what it says.

use super::*;
use crate::network::fixtures::{back, overlay, peer, remote};
use crate::network::picture::{Delta, Readiness};
use skep_types::{NetworkId, TaskId};

/// `back` with this many tasks of another node.
fn crowded(tasks: u64) -> Picture {
    let mut known = back(&[1, 2], &[]);
    let others = (1..=tasks).map(|number| task(number, Readiness::Ready));
    known.tasks = others.map(|task| (task.id.clone(), task)).collect();
    Picture { revision: 3, node_index: 1, vxlan_port: 4789, networks: [(known.network.id.clone(), known)].into(), ..Picture::default() }
}

fn task(number: u64, readiness: Readiness) -> crate::network::picture::SpannedTask {
    let mut task = remote(2, 1, 2, readiness);
    let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
    task.id = TaskId::for_test(number);
    task.addresses = vec![[10, 0, high, low].into()];
    task
}

fn change(revision: u64, delta: Delta) -> Changes {
    Changes { revision, networks: vec![delta], node_index: 1, vxlan_port: 4789, ..Changes::default() }
}

/// A change of one task.
fn one(revision: u64, number: u64) -> Changes {
    let readiness = if revision.is_multiple_of(2) { Readiness::Ready } else { Readiness::Starting };
    change(revision, Delta { tasks: vec![task(number, readiness)], ..Delta::of(NetworkId::for_test(2)) })
}

/// Does as the agent does with a message, and returns how many bytes that wrote.
fn take_in(kept: &mut Kept, picture: &mut Picture, changes: Changes) -> u64 {
    let mut news = News::default();
    news.add(changes.clone());
    picture.change(changes);
    news.take(kept.wants_whole(), picture).map_or(0, |what| kept.save(what).unwrap())
}

#[test]
fn it_counts_for_the_node_that_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent/networks.json");
    let picture = crowded(2);
    let mut kept = Kept::new(&path, "n1");
    assert_eq!(kept.load(), None);
    kept.save(Save::Whole(picture.clone())).unwrap();
    assert_eq!(kept.load(), Some(picture));
    assert_eq!(Kept::new(&path, "n2").load(), None);
    fs::write(&path, "{").unwrap();
    assert_eq!(kept.load(), None);
}

#[test]
fn a_change_writes_what_it_says_however_much_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let mut costs = Vec::new();
    for tasks in [100, 4_000] {
        let mut kept = Kept::new(&dir.path().join(format!("{tasks}.json")), "n1");
        let mut picture = crowded(tasks);
        let whole = kept.save(Save::Whole(picture.clone())).unwrap();
        let written = (4..54).map(|revision| take_in(&mut kept, &mut picture, one(revision, revision)));
        let (count, sum) = (50, written.sum::<u64>());
        assert!(sum / count < 1_000, "{} bytes for a change of one task", sum / count);
        assert!(whole > tasks * 150);
        assert_eq!(kept.load(), Some(picture));
        costs.push(sum);
    }
    assert_eq!(costs[0], costs[1], "the same changes");
}

#[test]
fn all_in_all_it_writes_no_more_than_three_times_what_the_changes_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("networks.json");
    let mut kept = Kept::new(&path, "n1");
    let mut picture = crowded(1_000);
    let whole = kept.save(Save::Whole(picture.clone())).unwrap();
    let (mut written, mut said, mut begun) = (0, 0, 0);
    for revision in 4..5_000 {
        let changes = one(revision, 1 + revision % 1_000);
        said += serde_json::to_vec(&changes).unwrap().len() as u64 + 1;
        let before = kept.begun.as_ref().map(|begun| begun.changes);
        written += take_in(&mut kept, &mut picture, changes);
        begun += usize::from(before > kept.begun.as_ref().map(|begun| begun.changes));
        assert!(fs::metadata(&path).unwrap().len() <= 3 * whole);
    }
    assert!(begun > 1, "it was begun anew");
    assert!(written < 3 * said, "{written} bytes written of {said}");
    assert_eq!(kept.load(), Some(picture));
}

#[test]
fn a_line_that_was_cut_off_anywhere_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("networks.json");
    let mut kept = Kept::new(&path, "n1");
    let mut picture = crowded(3);
    kept.save(Save::Whole(picture.clone())).unwrap();
    take_in(&mut kept, &mut picture, one(4, 7));
    let (before, length) = (picture.clone(), fs::metadata(&path).unwrap().len());
    take_in(&mut kept, &mut picture, one(5, 8));
    let text = fs::read(&path).unwrap();
    for end in length as usize..text.len() {
        fs::write(&path, &text[..end]).unwrap();
        assert_eq!(kept.load().as_ref(), Some(&before), "cut at {end}");
    }
    // What a machine lost when its power went: nothing behind it counts.
    let mut holed = text.clone();
    holed[length as usize - 20..length as usize - 10].fill(0);
    fs::write(&path, &holed).unwrap();
    assert_eq!(kept.load(), Some(crowded(3)));
    fs::write(&path, &text).unwrap();
    assert_eq!(kept.load(), Some(picture.clone()));
    // The next process does not append to what may have no end.
    let mut next = Kept::new(&path, "n1");
    assert!(next.wants_whole());
    take_in(&mut next, &mut picture, one(6, 9));
    assert_eq!(fs::read(&path).unwrap().iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!(next.load(), Some(picture));
}

#[test]
fn changes_of_every_kind_are_read_as_they_were_taken_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Kept::new(&dir.path().join("networks.json"), "n1");
    let mut picture = crowded(3);
    kept.save(Save::Whole(picture.clone())).unwrap();
    let (back, other) = (NetworkId::for_test(2), NetworkId::for_test(3));
    let service = picture.networks[&back].services.values().next().unwrap().clone();
    let deltas = [
        Delta { removed_tasks: vec![TaskId::for_test(2)], peers: vec![peer(3)], ..Delta::of(back.clone()) },
        Delta { removed_peers: vec![2], removed_services: vec![service.id.clone()], ..Delta::of(back.clone()) },
        Delta { network: Some(overlay(3, "other", false)), complete: true, peers: vec![peer(4)], ..Delta::of(other.clone()) },
        Delta { services: vec![service], ..Delta::of(other.clone()) },
        Delta { network: Some(overlay(2, "renamed", false)), ..Delta::of(back.clone()) },
        Delta { complete: true, tasks: vec![task(9, Readiness::Leaving)], ..Delta::of(back) },
        Delta { removed: true, ..Delta::of(other) },
    ];
    for (revision, delta) in (4..).zip(deltas) {
        take_in(&mut kept, &mut picture, change(revision, delta));
        assert_eq!(kept.load().as_ref(), Some(&picture), "after {revision}");
    }
    let epochs = Some(crate::network::picture::Epochs { oldest: 1, sending: 1, newest: 2 });
    take_in(&mut kept, &mut picture, Changes { revision: 20, node_index: 2, epochs, ..Changes::default() });
    assert_eq!(kept.load(), Some(picture));
}

#[test]
fn what_waits_is_bounded_and_a_complete_message_takes_the_place_of_all() {
    let picture = crowded(2);
    let mut news = News::default();
    assert!(news.take(false, &picture).is_none());
    (0..10).for_each(|number| news.add(one(number, number)));
    assert!(matches!(news.take(false, &picture), Some(Save::Changes(changes)) if changes.len() == 10));
    (0..MOST_WAITING as u64).for_each(|number| news.add(one(number, 1)));
    assert!(news.changes.is_empty() && matches!(news.take(false, &picture), Some(Save::Whole(_))));
    news.add(one(1, 1));
    news.add(Changes { complete: true, ..Changes::default() });
    assert!(matches!(news.take(false, &picture), Some(Save::Whole(_))));
    news.add(one(1, 1));
    assert!(matches!(news.take(true, &picture), Some(Save::Whole(_))), "it is time to begin anew");
}

#[test]
fn a_disk_that_takes_nothing_is_tried_again_with_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("networks.json");
    let mut kept = Kept::new(&path, "n1");
    kept.save(Save::Whole(crowded(1))).unwrap();
    // The end of a pipe that nobody reads takes nothing.
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    kept.begun.as_mut().unwrap().file = File::from(std::os::fd::OwnedFd::from(writer));
    assert!(kept.save(Save::Changes(vec![one(4, 1)])).is_err());
    assert!(kept.wants_whole());
    assert_eq!(kept.load(), Some(crowded(1)), "what was there before");
    kept.save(Save::Whole(crowded(2))).unwrap();
    assert_eq!(kept.load(), Some(crowded(2)));
}
