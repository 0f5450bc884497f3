//! The output of a container, line by line.

use super::{Containers, ContainersError};
use crate::logs::{LogLine, LogOptions, LogQuery, read_logs};
use skep_types::TaskId;
use std::time::Duration;
use tokio::sync::mpsc;

/// Batches of lines on their way; a reader waits when the client is slow.
const IN_FLIGHT: usize = 4;
/// When the agent ends, for what is there to be sent.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Behind the end of a container, whose output is in its files by then unless the log writer is slow.
const LATE_LINES: Duration = Duration::from_millis(100);

impl Containers {
    /// Lines until there are no more: of a followed container until it has ended. Dropping the receiver ends the reading.
    ///
    /// # Errors
    /// If there is no such container, or its output is not kept.
    pub fn lines(&self, id: &TaskId, query: LogQuery) -> Result<mpsc::Receiver<Vec<LogLine>>, ContainersError> {
        let facts = self.facts(id)?;
        if LogOptions::of(facts.task.log_driver.as_ref()).is_ok_and(|options| options.discard) {
            return Err(ContainersError::NoLogs);
        }
        let dir = self.0.executor.config().logs_dir().join(id.as_str());
        let (sender, lines) = mpsc::channel(IN_FLIGHT);
        let (engine, agent, id) = (self.0.engine.clone(), self.0.stop.clone(), id.clone());
        let following = self.0.locals.follow(&id);
        let stop = agent.child_token();
        self.0.work.spawn(async move {
            let reading = read_logs(dir, query, sender, stop.clone());
            let ending = async {
                if query.follow {
                    match following {
                        Some(mut local) => {
                            let _ = local.wait_for(|local| local.is_gone || !local.is_running() && !local.is_restarting).await;
                            tokio::time::sleep(LATE_LINES).await;
                        }
                        None => engine.output_ended(&id).await,
                    }
                    stop.cancel();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                read = reading => if let Err(error) = read {
                    tracing::warn!(task = %id, %error, "could not read a container's output");
                },
                () = ending => {}
                // A client that does not read must not keep the agent.
                () = async { agent.cancelled().await; tokio::time::sleep(LAST_LINES).await } => {}
            }
        });
        Ok(lines)
    }
}
