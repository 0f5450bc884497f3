//! Containers that are no tasks: made, started, changed by hand.

use super::{Containers, ContainersError};
use crate::locals::{Local, LocalWish};
use crate::places::PlaceWish;
use skep_types::TaskId;
use tokio::sync::watch;

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Now, if it does not run.
    NotRunning,
    NextExit,
    Removed,
}

/// Somebody who waits, from the moment on in which this was made.
#[derive(Debug)]
pub struct Waiting {
    following: watch::Receiver<Local>,
    ends: u64,
    until: Until,
}

impl Waiting {
    /// The exit code.
    ///
    /// # Errors
    /// If the agent ends.
    pub async fn wait(mut self) -> Result<i32, ContainersError> {
        let (ends, until) = (self.ends, self.until);
        let is_over = |local: &Local| {
            local.is_gone
                || match until {
                    Until::NotRunning => !local.is_running() && !local.is_restarting,
                    Until::NextExit => local.ends > ends,
                    Until::Removed => false,
                }
        };
        let over = self.following.wait_for(is_over).await;
        over.map(|local| local.exit_code()).map_err(|_| ContainersError::Ending)
    }
}

impl Containers {
    /// Makes one that is not started.
    ///
    /// # Errors
    /// If its name is taken, or something of it cannot be had.
    pub async fn create(&self, wish: LocalWish) -> Result<TaskId, ContainersError> {
        self.0.locals.create(wish).await
    }

    /// # Errors
    /// If it cannot be started, or is a task's.
    pub async fn start(&self, id: &TaskId) -> Result<(), ContainersError> {
        self.local(id)?;
        self.0.locals.start(id).await
    }

    /// # Errors
    /// If the name is taken, or it is a task's.
    pub async fn rename(&self, id: &TaskId, name: &str) -> Result<(), ContainersError> {
        self.local(id)?;
        self.0.locals.rename(id, name).await
    }

    /// Puts it on one more network.
    ///
    /// # Errors
    /// If it is there, cannot be, or is a task's.
    pub async fn connect(&self, id: &TaskId, wish: PlaceWish) -> Result<(), ContainersError> {
        self.local(id)?;
        self.0.locals.connect(id, wish).await
    }

    /// Takes it off a network.
    ///
    /// # Errors
    /// If it is not there, cannot be taken off, or is a task's.
    pub async fn disconnect(&self, id: &TaskId, network: &str) -> Result<(), ContainersError> {
        self.local(id)?;
        self.0.locals.disconnect(id, network).await
    }

    /// Changes limits, the wish for restarts, and what is kept of what was asked for.
    ///
    /// # Errors
    /// If the limits cannot be kept, or it is a task's.
    pub async fn update(
        &self,
        id: &TaskId,
        change: impl FnOnce(&mut Local) -> Result<(), ContainersError> + Send + 'static,
    ) -> Result<(), ContainersError> {
        self.local(id)?;
        self.0.locals.update(id, change).await
    }

    /// Whether there are any: who leaves takes them along.
    #[must_use]
    pub fn locals(&self) -> Vec<Local> {
        self.0.locals.list()
    }

    /// From now on. `None` for a task's, whose end is [`Containers::wait`]'s.
    #[must_use]
    pub fn waiting(&self, id: &TaskId, until: Until) -> Option<Waiting> {
        let following = self.0.locals.follow(id)?;
        let ends = following.borrow().ends;
        Some(Waiting { following, ends, until })
    }

    /// Whether it is no task's.
    #[must_use]
    pub fn is_local(&self, id: &TaskId) -> bool {
        self.0.locals.get(id).is_some()
    }

    pub(crate) async fn remove_locals(&self) {
        self.0.locals.remove_all().await;
    }

    fn local(&self, id: &TaskId) -> Result<Local, ContainersError> {
        match self.0.locals.get(id) {
            Some(local) => Ok(local),
            None => self.task(id).and_then(|_| Err(ContainersError::OfTask { container: id.to_string() })),
        }
    }
}
