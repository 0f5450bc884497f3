//! The task that keeps a node's certificate and roots right while it is in a cluster.

use crate::agent::{AgentState, chain};
use crate::certificate::renew::renew;
use crate::certificate::schedule::{Schedule, Urge, urge};
use crate::vault::Vault;
use skep_agent::ManagerAddress;
use skep_ca::{Identity, RootBundle, SecurityConfig};
use skep_types::Version;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The wall clock is looked at this often: it may jump, and timers stand still while a machine sleeps.
const LOOK: Duration = Duration::from_secs(600);

/// What a renewer works with.
pub struct RenewerParts {
    pub security: SecurityConfig,
    pub vault: Vault,
    /// What the managers say, as far as the agent hears it.
    pub agent: watch::Receiver<AgentState>,
    /// `host:port` of the manager on this very node, while there is one.
    pub local: watch::Receiver<Option<String>>,
    /// Of the join command; the last to be asked.
    pub seeds: Vec<String>,
    /// `<data>/agent/managers.json`
    pub managers_file: PathBuf,
}

/// What there is to know of it.
#[derive(Debug, Clone, Default)]
pub struct RenewerState {
    /// Why the last renewal failed, for people; empty if none did.
    pub problem: String,
}

/// Owner of the task. Dropping it ends the task.
pub struct Renewer {
    ask: Arc<Notify>,
    state: watch::Receiver<RenewerState>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Renewer {
    pub fn start(parts: RenewerParts) -> Self {
        let (ask, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let (publish, state) = watch::channel(RenewerState::default());
        let work = Work { parts, publish, answered: None, refused: None };
        let task = tokio::spawn(work.run(Arc::clone(&ask), stop.clone()));
        Self { ask, state, stop, task }
    }

    /// Renews soon, whatever the certificate's age.
    pub fn ask(&self) {
        self.ask.notify_one();
    }

    pub fn state(&self) -> watch::Receiver<RenewerState> {
        self.state.clone()
    }

    /// Ends it. A renewal under way is broken off: what is on disk is the old identity or the new one.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Work {
    parts: RenewerParts,
    publish: watch::Sender<RenewerState>,
    /// The request to rotate that was followed last.
    answered: Option<Version>,
    /// Roots that were not taken, so that it is said once.
    refused: Option<Vec<u8>>,
}

impl Work {
    async fn run(mut self, ask: Arc<Notify>, stop: CancellationToken) {
        let Some(mut identity) = self.parts.security.identity() else { return };
        let mut schedule = schedule(&identity);
        let mut asked = false;
        loop {
            self.take_roots().await;
            let wanted = {
                let state = self.parts.agent.borrow_and_update();
                urge(state.session.node.as_deref(), identity.role(), self.answered)
            };
            schedule.want(if asked { Some(Urge::Asked) } else { wanted }, Instant::now());
            let due = schedule.due(SystemTime::now(), Instant::now());
            tokio::select! {
                () = stop.cancelled() => return,
                () = ask.notified() => {
                    asked = true;
                    continue;
                }
                () = news(&mut self.parts.agent) => continue,
                () = tokio::time::sleep(due.min(LOOK)) => if due > LOOK { continue },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.once(&mut identity, &mut schedule) => asked = false,
            }
        }
    }

    /// One try.
    async fn once(&mut self, identity: &mut Arc<Identity>, schedule_now: &mut Schedule) {
        let urge = schedule_now.urge();
        let remotes = self.remotes();
        match renew(&self.parts.security, &self.parts.vault, &remotes).await {
            Ok(renewed) => {
                tracing::info!(role = %renewed.role(), reason = ?urge, "certificate renewed");
                if let Some(Urge::Rotate(version)) = urge {
                    self.answered = Some(version);
                }
                *identity = renewed;
                *schedule_now = schedule(identity);
                self.publish.send_replace(RenewerState::default());
                if let Some(expected) = urge.and_then(Urge::expected).filter(|expected| *expected != identity.role()) {
                    tracing::info!(%expected, "the new certificate has the old role still; asking again later");
                    schedule_now.want(urge, Instant::now());
                    schedule_now.failed(Instant::now(), rand::random());
                }
            }
            Err(error) => {
                let text = chain(&error);
                tracing::warn!(error = text, reason = ?urge, "the certificate was not renewed; trying again later");
                let problem = format!("the certificate cannot be renewed: {text}");
                self.publish.send_replace(RenewerState { problem });
                schedule_now.failed(Instant::now(), rand::random());
            }
        }
    }

    /// New roots that the managers tell of (wire-behaviour 4.6).
    async fn take_roots(&mut self) {
        let told = self.parts.agent.borrow().session.root_ca.clone();
        let Some(identity) = self.parts.security.identity() else { return };
        if told.is_empty() || told == identity.roots().pem().as_bytes() || self.refused.as_ref() == Some(&told) {
            return;
        }
        if let Err(error) = self.install_roots(&told).await {
            tracing::warn!(error = %format!("{error:#}"), "new roots were not taken");
            self.refused = Some(told);
        }
    }

    async fn install_roots(&self, told: &[u8]) -> anyhow::Result<()> {
        let roots = RootBundle::parse(std::str::from_utf8(told)?)?;
        if self.parts.security.install_roots(roots.clone(), SystemTime::now())? {
            self.parts.vault.save_roots(&roots).await?;
            tracing::info!(roots = roots.digest_text(), "took the cluster's new roots");
        }
        Ok(())
    }

    /// Who may be asked, the likeliest first.
    fn remotes(&self) -> Vec<String> {
        let known = std::fs::read(&self.parts.managers_file).unwrap_or_default();
        let known: Vec<ManagerAddress> = serde_json::from_slice(&known).unwrap_or_default();
        let session = self.parts.agent.borrow().session.manager.clone();
        let mut others: Vec<String> = known.into_iter().map(|manager| manager.addr).collect();
        if !others.is_empty() {
            let first = rand::random_range(0..others.len());
            others.rotate_left(first);
        }
        ordered(self.parts.local.borrow().clone(), session, others, &self.parts.seeds)
    }
}

fn ordered(local: Option<String>, session: String, others: Vec<String>, seeds: &[String]) -> Vec<String> {
    let mut remotes: Vec<String> = Vec::new();
    for address in local.into_iter().chain([session]).chain(others).chain(seeds.iter().cloned()) {
        if !address.is_empty() && !remotes.contains(&address) {
            remotes.push(address);
        }
    }
    remotes
}

fn schedule(identity: &Identity) -> Schedule {
    Schedule::new(identity.not_before(), identity.not_after(), rand::random())
}

/// Pending for ever once nothing more can come.
async fn news<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_beside_is_asked_first_and_nobody_twice() {
        let owned = |text: &str| text.to_owned();
        let remotes = ordered(Some(owned("a:1")), owned("b:1"), vec![owned("a:1"), owned("c:1")], &[owned("c:1"), owned("d:1")]);
        assert_eq!(remotes, ["a:1", "b:1", "c:1", "d:1"]);
        assert_eq!(ordered(None, String::new(), vec![], &[owned("d:1")]), ["d:1"]);
    }
}
