//! Which addresses were freed in the last minute, remembered by every manager: whoever leads next must not give them again before the
//! nodes know, and what had them may be gone from the store by then.
//!
//! One task per manager ([`watch_freed`]), which alone has the memory; questions come by a channel. It answers when it has seen the
//! revision asked for.

use crate::shared::Shared;
use skep_plan::{FreedAddresses, FreedLately};
use skep_store::FeedEvent;
use skep_types::{ClusterView as _, Version};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Questions that wait; who leads asks one after the other, so a second one is of a term that is over.
const MOST_QUESTIONS: usize = 4;

/// For the answer. What is in a view comes to readers of the store a moment later.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

struct Question {
    version: Version,
    answer: oneshot::Sender<FreedLately>,
}

/// Asks [`watch_freed`].
pub(crate) struct FreedWatch {
    ask: mpsc::Sender<Question>,
    /// Until the task has them.
    questions: Mutex<Option<mpsc::Receiver<Question>>>,
}

impl Default for FreedWatch {
    fn default() -> Self {
        let (ask, questions) = mpsc::channel(MOST_QUESTIONS);
        Self { ask, questions: Mutex::new(Some(questions)) }
    }
}

impl FreedWatch {
    /// What was freed in the minute before, everything up to this revision included. Without an answer nothing is known.
    pub(crate) async fn lately(&self, version: Version) -> FreedLately {
        let asked = async {
            let (answer, answered) = oneshot::channel();
            self.ask.send(Question { version, answer }).await.ok()?;
            answered.await.ok()
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, asked).await;
        answer.ok().flatten().unwrap_or_else(|| FreedLately { incomplete: true, ..FreedLately::default() })
    }
}

/// Watches the store until the manager or the store stops.
pub(crate) async fn watch_freed(shared: Arc<Shared>) {
    let Some(mut questions) = shared.freed.questions.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let (view, mut feed) = shared.watch();
    let began = Instant::now();
    // A store that is empty yet tells everything that ever was.
    let mut freed = FreedAddresses::new((view.version() != Version::default()).then_some(Duration::ZERO));
    drop(view);
    let mut waiting = Vec::<Question>::new();
    loop {
        let event = tokio::select! {
            () = shared.stop.cancelled() => return,
            Some(question) = questions.recv() => {
                waiting.retain(|question| !question.answer.is_closed());
                waiting.push(question);
                None
            }
            event = feed.next() => match event {
                Some(event) => Some(event),
                None => return,
            },
        };
        match event {
            Some(FeedEvent::Commit(commit)) => {
                commit.changes.iter().for_each(|change| freed.observe(commit.version, change, began.elapsed()));
            }
            Some(FeedEvent::Resync) => {
                feed.resume(shared.store.view().version());
                freed.missed(began.elapsed());
            }
            None => {}
        }
        for question in waiting.extract_if(.., |question| question.version <= feed.position()) {
            // Who does not wait any more leads no more.
            let _ = question.answer.send(freed.lately(began.elapsed()));
        }
    }
}
