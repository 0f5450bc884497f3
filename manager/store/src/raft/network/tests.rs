use super::*;
use openraft::{CommittedLeaderId, Entry, EntryPayload, Vote};
use std::sync::Mutex;

fn id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

fn append(prev: Option<u64>, entries: &[u64]) -> AppendEntriesRequest<RaftTypes> {
    AppendEntriesRequest {
        vote: Vote::new(1, 1),
        prev_log_id: prev.map(id),
        entries: entries.iter().map(|index| blank(*index)).collect(),
        leader_commit: None,
    }
}

fn blank(index: u64) -> Entry<RaftTypes> {
    Entry { log_id: id(index), payload: EntryPayload::Blank }
}

/// Takes everything and notes how many entries each call had.
#[derive(Default)]
struct Follower(Mutex<Vec<usize>>);

#[async_trait]
impl RaftTransport for Follower {
    async fn call(&self, _: RaftId, _: &Member, _: RaftCall, request: Vec<u8>, _: Duration) -> Result<Vec<u8>, TransportError> {
        let request: AppendEntriesRequest<RaftTypes> = codec::decode("raft request", &request).unwrap();
        self.0.lock().unwrap().push(request.entries.len());
        Ok(codec::encode("raft answer", &Ok::<_, RaftError<RaftId>>(AppendEntriesResponse::<RaftId>::Success)).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn word_of_what_is_committed_goes_with_the_next_entries() {
    let dir = tempfile::tempdir().unwrap();
    let (log, follower) = (Arc::new(LogShared::new(dir.path(), 16 * 1024, 1024)), Arc::new(Follower::default()));
    let lines = Lines::new(follower.clone(), log.clone());
    let mut peer = Network(lines).new_client(2, &Member::default()).await;
    let limit = || RPCOption::new(Duration::from_millis(100));
    let calls = || follower.0.lock().unwrap().clone();
    log.append(&[blank(0)]);

    for _ in 0..2 {
        let began = Instant::now();
        peer.append_entries(append(Some(0), &[]), limit()).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "it follows no entries: somebody wants to know whether the follower is there");
    }
    log.append(&[blank(1)]);
    peer.append_entries(append(Some(0), &[1]), limit()).await.unwrap();
    assert_eq!(calls(), [0, 0, 1]);

    // They are taken and committed: the next entries are waited for.
    let waiting = tokio::spawn(async move {
        let answer = peer.append_entries(append(Some(1), &[]), limit()).await;
        (peer, answer)
    });
    tokio::task::yield_now().await;
    log.append(&[blank(2)]);
    let (mut peer, answer) = waiting.await.unwrap();
    answer.unwrap();
    assert_eq!(calls(), [0, 0, 1], "the next entries say it");

    // Those are there already, but not sent: whatever openraft wants to say, it does.
    peer.append_entries(append(Some(1), &[]), limit()).await.unwrap();
    peer.append_entries(append(Some(1), &[2]), limit()).await.unwrap();
    assert_eq!(calls(), [0, 0, 1, 0, 1]);

    let began = Instant::now();
    peer.append_entries(append(Some(2), &[]), limit()).await.unwrap();
    assert_eq!(calls(), [0, 0, 1, 0, 1, 0], "nothing came");
    assert!((LINGER..2 * LINGER).contains(&began.elapsed()), "{:?}", began.elapsed());

    let began = Instant::now();
    peer.append_entries(append(Some(2), &[]), limit()).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "a while has passed");
}

#[test]
fn entries_with_a_gap_are_neither_sent_nor_taken() {
    assert!(check_gap(&append(None, &[0, 1])).is_ok());
    assert!(check_gap(&append(Some(4), &[5, 6])).is_ok());
    assert!(check_gap(&append(Some(4), &[])).is_ok());
    assert!(check_gap(&append(None, &[7])).is_err());
    assert!(check_gap(&append(Some(4), &[5, 7])).is_err());
}

#[test]
fn no_leader_contradicts_what_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogShared::new(dir.path(), 16 * 1024, 1024);
    log.append(&[blank(0), blank(1), blank(2), blank(3)]);
    let other = |prev: u64, entry: u64| {
        let mut request = append(Some(prev), &[entry]);
        request.entries[0].log_id = LogId::new(CommittedLeaderId::new(2, 2), entry);
        request
    };
    // Nothing is committed yet: all may be replaced.
    check_committed(&log, &other(1, 2)).unwrap();
    log.set_committed(Some(id(2)));
    check_committed(&log, &append(Some(1), &[2, 3])).unwrap();
    check_committed(&log, &append(Some(3), &[])).unwrap();
    check_committed(&log, &other(2, 3)).unwrap();
    assert!(matches!(check_committed(&log, &other(1, 2)), Err(AnswerError::Impossible { index: 2, .. })));
    let mut forged = append(Some(1), &[]);
    forged.prev_log_id = Some(LogId::new(CommittedLeaderId::new(9, 9), 1));
    assert!(matches!(check_committed(&log, &forged), Err(AnswerError::Impossible { index: 1, .. })));
}
