//! The part of the agent that needs no manager: worker, records, reports. The session is its user, and so are tests.

use crate::applied::{Applied, Ledger};
use crate::board::Board;
use crate::error::AgentError;
use crate::executor::{Executor, Network};
use crate::payloads::Payloads;
use crate::reach::Reach;
use crate::records::Records;
use crate::reports::Reports;
use crate::task::drive::Context;
use crate::worker::{Assign, TaskList, Worker};
use skep_types::TaskId;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Assignments wait here while the worker is busy; the session waits when it is full.
const ASSIGNMENTS: usize = 64;
/// How often a task whose output is followed is looked at whether it ended.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After a task's end, for the last lines to be written.
const LAST_LINES: Duration = Duration::from_millis(500);

/// The handle of a running engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub assign: mpsc::Sender<Assign>,
    pub reports: Reports,
    pub payloads: Payloads,
    pub tasks: TaskList,
    /// What happened lately.
    pub board: Board,
    pub(crate) applied: Applied,
    /// Told by the session; without one no task is ever restarted for want of managers.
    pub(crate) reach: Reach,
    /// For what managers say of networks on other nodes.
    pub(crate) network: Arc<dyn Network>,
}

impl Engine {
    /// Adopts what an earlier agent left and returns the handle together with the future to be run. Cancelling `stop`
    /// ends it; tasks go on running. `node_id` is this node's; what another node applied is not built upon.
    ///
    /// # Errors
    /// If the local records cannot be read or containerd cannot say what there is.
    pub async fn start(
        data_dir: &Path,
        node_id: &str,
        executor: Arc<dyn Executor>,
        network: Arc<dyn Network>,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), AgentError> {
        Self::start_with(data_dir, node_id, executor, network, Board::default(), stop).await
    }

    /// The same with a board that others write on, too.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) async fn start_with(
        data_dir: &Path,
        node_id: &str,
        executor: Arc<dyn Executor>,
        network: Arc<dyn Network>,
        board: Board,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), AgentError> {
        let (reports, payloads, reach, applied) = (Reports::default(), Payloads::default(), Reach::default(), Applied::default());
        let ledger = Ledger::new(&data_dir.join("agent/applied.json"), node_id, applied.clone());
        let context = Arc::new(Context {
            executor,
            network: Arc::clone(&network),
            payloads: payloads.clone(),
            records: Records::open(&data_dir.join("agent/tasks"))?,
            reports: reports.clone(),
            reach: reach.clone(),
            board: board.clone(),
            slots: watch::Sender::default(),
        });
        let (mut worker, tasks) = Worker::new(context, ledger, stop);
        worker.recover().await?;
        let (assign, inbox) = mpsc::channel(ASSIGNMENTS);
        Ok((Self { assign, reports, payloads, tasks, board, applied, reach, network }, worker.run(inbox)))
    }

    /// Waits until a task has ended, or is there no more, and its last lines are written.
    pub(crate) async fn output_ended(&self, task: &TaskId) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.reports.newest(task).is_none_or(|status| status.state.is_terminal()) {
                return tokio::time::sleep(LAST_LINES).await;
            }
        }
    }
}
