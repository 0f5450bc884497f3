//! Group commit: proposals that wait together share one log entry and one sync.

use crate::disk::log::{LogShared, room};
use crate::error::ProposeError;
use crate::raft::log::Broken;
use crate::raft::types::{Batch, BatchResult, Member, Raft, Transaction};
use crate::transfer::Transfer;
use openraft::error::{ClientWriteError, Fatal};
use skep_types::Version;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// The most that one transaction may take in the log, as in the original (`SK/manager/state/raft`: 1.5 MiB).
pub const MAX_TRANSACTION_BYTES: usize = 3 << 19;
/// Advice for callers with much to write: transactions of about this many actions (`MaxChangesPerTransaction`).
pub const MAX_TRANSACTION_CHANGES: usize = 200;

/// A log entry takes so many transactions at most, or so many bytes unless a single one has more.
const BATCH_TRANSACTIONS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// When the store is shut down, what is being committed gets so much time.
const LAST_COMMIT: Duration = Duration::from_secs(2);
/// Proposals waiting for their turn; beyond that `propose` waits.
pub(crate) const WAITING: usize = 1024;

pub(crate) type Answer = Result<Version, ProposeError>;

pub(crate) struct Proposal {
    pub(crate) transaction: Transaction,
    pub(crate) encoded: Vec<u8>,
    pub(crate) answer: oneshot::Sender<Answer>,
}

pub(crate) struct Proposer {
    pub(crate) queue: mpsc::Receiver<Proposal>,
    pub(crate) raft: Raft,
    pub(crate) log: Arc<LogShared>,
    pub(crate) broken: Broken,
    pub(crate) timeout: Duration,
    pub(crate) transfer: Arc<Transfer>,
    pub(crate) stop: CancellationToken,
}

impl Proposer {
    /// One entry at a time: while it is being written, the next one fills.
    pub(crate) async fn run(mut self) {
        let mut left = None;
        loop {
            let first = match left.take() {
                Some(proposal) => proposal,
                None => tokio::select! {
                    biased;
                    () = self.stop.cancelled() => break,
                    received = self.queue.recv() => match received {
                        Some(proposal) => proposal,
                        None => return,
                    },
                },
            };
            let (batch, over) = self.fill(first);
            left = over;
            let overdue = async {
                self.stop.cancelled().await;
                tokio::time::sleep(LAST_COMMIT).await;
            };
            tokio::select! {
                biased;
                () = self.commit(batch) => {}
                // Those waiting are told that the store has stopped; what became of them nobody knows.
                () = overdue => break,
            }
        }
        self.queue.close();
        while let Ok(proposal) = self.queue.try_recv() {
            let _ = proposal.answer.send(Err(ProposeError::Stopped));
        }
    }

    /// Takes what waits behind `first` as far as one entry goes; the one that did not fit comes back.
    fn fill(&mut self, first: Proposal) -> (Vec<Proposal>, Option<Proposal>) {
        let limit = BATCH_BYTES.min(self.log.max_entry() - 1024);
        let mut bytes = first.encoded.len();
        let mut batch = vec![first];
        while batch.len() < BATCH_TRANSACTIONS {
            let Ok(next) = self.queue.try_recv() else { break };
            if bytes + next.encoded.len() > limit {
                return (batch, Some(next));
            }
            bytes += next.encoded.len();
            batch.push(next);
        }
        (batch, None)
    }

    async fn commit(&self, proposals: Vec<Proposal>) {
        let mut answers = Vec::with_capacity(proposals.len());
        let mut transactions = Vec::with_capacity(proposals.len());
        let mut parts = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            // Whoever gave up waiting before its turn proposes nothing.
            if proposal.answer.is_closed() {
                continue;
            }
            answers.push(proposal.answer);
            transactions.push(proposal.transaction);
            parts.push(proposal.encoded);
        }
        if answers.is_empty() {
            return;
        }
        // A leader that is going writes nothing more: its successor has to have everything.
        let _writing = self.transfer.writing.lock().await;
        if self.transfer.is_on() {
            answers.into_iter().for_each(|answer| drop(answer.send(Err(ProposeError::NotLeader { leader: None }))));
            return;
        }
        let outcome = match room(&self.log, parts.iter().map(Vec::len).sum(), 1).await {
            Err(error) => {
                if error.is_full() {
                    self.transfer.full.notify_one();
                }
                Err(ProposeError::Disk(error))
            }
            Ok(()) => self.write(Batch::new(transactions, &parts)).await,
        };
        match outcome {
            Ok(BatchResult(results)) => {
                for (answer, result) in answers.into_iter().zip(results) {
                    let _ = answer.send(result.map_err(ProposeError::Refused));
                }
            }
            Err(error) => answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone())))),
        }
    }

    async fn write(&self, batch: Batch) -> Result<BatchResult, ProposeError> {
        let receiver = self.raft.client_write_ff(batch).await.map_err(|fatal| self.fatal(&fatal))?;
        match tokio::time::timeout(self.timeout, receiver).await {
            Err(_) => Err(ProposeError::Timeout(self.timeout)),
            Ok(Err(_)) => Err(self.stopped()),
            Ok(Ok(Ok(response))) => Ok(response.data),
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => Err(lost(forward.leader_node)),
            Ok(Ok(Err(ClientWriteError::ChangeMembershipError(_)))) => Err(ProposeError::Stopped), // never for a batch
        }
    }

    fn fatal(&self, fatal: &Fatal<u64>) -> ProposeError {
        tracing::debug!(%fatal, "raft has ended");
        self.stopped()
    }

    fn stopped(&self) -> ProposeError {
        match &*self.broken.borrow() {
            Some(error) => ProposeError::Disk(Arc::clone(error)),
            None => ProposeError::Stopped,
        }
    }
}

fn lost(leader: Option<Member>) -> ProposeError {
    ProposeError::LeadershipLost { leader }
}
