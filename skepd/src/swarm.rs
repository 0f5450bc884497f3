//! Everything that runs while the node is in a cluster: the agent and the renewer always, the manager while the node's
//! certificate says so.
//!
//! [`Swarm`] has one owner, the daemon's loop, which waits for [`Swarm::next`] and gives what comes to [`Swarm::handle`]. A node
//! becomes a manager or stops being one in here; its tasks and its agent go on.
//!
//! `node.json` is written when the node counts as a member and removed first when it leaves: what lies about without it is debris.

mod announce; // telling the other managers
mod found; // a new cluster
mod join; // one that exists
mod leave; // and out again
mod manager; // the manager and its port
mod open; // after a start; unlocking
mod rescue; // backup, restore, recover
mod role; // becoming a manager, ceasing to be one
mod wanted; // what callers ask for, understood

pub use announce::Announced;
pub use manager::ManagerPart;
pub use rescue::has_majority;
pub use wanted::BadRequest;

use crate::address::beside;
use crate::agent::AgentKeeper;
use crate::attachments::WorkerAttachments;
use crate::certificate::{Renewer, RenewerParts};
use crate::parts::NodeParts;
use crate::state::NodeFile;
use crate::status::Shown;
use anyhow::{Context, Result, anyhow};
use skep_proto::v1::resource_allocator_server::ResourceAllocatorServer;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::server::NamedService as _;

/// What the daemon's loop is to do, in that order.
#[derive(Debug)]
pub enum Event {
    /// The certificate gives another role than the one that is played.
    Role,
    /// The other managers have this one on their list.
    Announced,
    /// The other managers took this one off their list.
    Removed,
    /// Time to try again what could not be done.
    Retry,
    /// A part ended that should run as long as the node is in the cluster.
    Ended(anyhow::Error),
}

/// Which part the node plays beside that of a worker.
enum Seat {
    /// None.
    Worker,
    Manager(Box<ManagerPart>),
    /// A manager whose state is sealed.
    Locked,
    /// A manager by its certificate that does not run.
    Vacant(Vacant),
}

struct Vacant {
    /// Why, for people.
    reason: String,
    next: Next,
    at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Start the manager again.
    Start,
    /// It was removed: ask for the certificate's role once more.
    Renew,
    /// It was removed and is to be a manager all the same: join anew.
    JoinAnew,
}

/// The parts that run while the node is in a cluster.
pub struct Swarm {
    parts: NodeParts,
    node: NodeFile,
    seat: Seat,
    agent: AgentKeeper,
    /// `None` while the identity is sealed.
    renewer: Option<Renewer>,
    /// `host:port` of the manager of this node, while it can be used.
    local: watch::Sender<Option<String>>,
    identities: watch::Receiver<u64>,
}

impl Swarm {
    /// The parts that every member has. The manager is started afterwards.
    fn new(parts: &NodeParts, node: NodeFile, seat: Seat) -> Self {
        let local = match &seat {
            Seat::Manager(_) if !node.joining => Some(beside(node.listen_addr).to_string()),
            _ => None,
        };
        let agent = AgentKeeper::start(parts.agent(Some(&node), local.clone()));
        let identities = parts.security.changes();
        let mut swarm = Self { parts: parts.clone(), node, seat, agent, renewer: None, local: watch::Sender::new(local), identities };
        swarm.start_renewer();
        swarm
    }

    /// Does nothing while the identity is sealed.
    fn start_renewer(&mut self) {
        if self.renewer.is_some() || self.parts.security.identity().is_none() {
            return;
        }
        self.renewer = Some(Renewer::start(RenewerParts {
            security: self.parts.security.clone(),
            vault: self.parts.vault.clone(),
            agent: self.agent.state(),
            local: self.local.subscribe(),
            seeds: self.node.managers.clone(),
            managers_file: self.parts.managers_file(),
        }));
    }

    /// The manager of this node, if there is one and it runs.
    pub fn manager(&self) -> Option<&ManagerPart> {
        match &self.seat {
            Seat::Manager(part) => Some(part),
            Seat::Worker | Seat::Locked | Seat::Vacant(_) => None,
        }
    }

    pub fn is_locked(&self) -> bool {
        matches!(self.seat, Seat::Locked)
    }

    /// What the local socket says to calls that only a manager answers.
    pub fn refusal(&self) -> &'static str {
        match &self.seat {
            Seat::Worker => "this node is a worker; ask a manager of its swarm",
            Seat::Locked => crate::local::LOCKED,
            Seat::Manager(_) | Seat::Vacant(_) => "the manager of this node does not run; `swarmctl cluster status` says why",
        }
    }

    /// What a worker's local socket answers of the services that managers have: the name of the one, and the routes to it.
    pub fn worker_routes(&self) -> Option<(&'static str, tonic::service::Routes)> {
        let routes = || WorkerAttachments::routes(self.agent.state(), &self.parts.security);
        matches!(self.seat, Seat::Worker).then(|| (ResourceAllocatorServer::<WorkerAttachments>::NAME, routes()))
    }

    /// What `Status` may tell from now on.
    pub fn shown(&self) -> Shown {
        let (locked, problem) = match &self.seat {
            Seat::Locked => (true, crate::local::LOCKED.to_owned()),
            Seat::Vacant(vacant) => (false, vacant.reason.clone()),
            Seat::Worker | Seat::Manager(_) => (false, String::new()),
        };
        Shown {
            node: self.node.clone(),
            locked,
            problem,
            store: self.manager().map(|part| part.store().clone()),
            addresses: self.manager().map(ManagerPart::addresses),
            announced: self.manager().map(ManagerPart::announced),
            agent: self.agent.state(),
            renewer: self.renewer.as_ref().map(Renewer::state),
            managers_file: self.parts.managers_file(),
        }
    }

    /// Waits for what has to be done next. Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Event {
        let plays_manager = !matches!(self.seat, Seat::Worker);
        let role = async {
            loop {
                self.identities.borrow_and_update();
                if role::differs(&self.parts.security, plays_manager) {
                    return;
                }
                if self.identities.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        match &mut self.seat {
            Seat::Worker => {
                role.await;
                Event::Role
            }
            Seat::Locked => std::future::pending().await,
            Seat::Vacant(vacant) => tokio::select! {
                () = role => Event::Role,
                () = tokio::time::sleep_until(vacant.at) => Event::Retry,
            },
            Seat::Manager(part) => tokio::select! {
                () = role => Event::Role,
                event = part.next(self.node.joining) => event,
            },
        }
    }

    /// Does what [`Self::next`] said. What fails is tried again later and told by `Status`.
    ///
    /// # Errors
    /// What makes the daemon end.
    pub async fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Ended(error) => return Err(error),
            Event::Role => self.follow_role().await,
            Event::Announced => self.announced().await,
            Event::Removed => self.removed().await,
            Event::Retry => self.retry().await,
        }
        Ok(())
    }

    /// Waits until the other managers have this one on their list.
    ///
    /// # Errors
    /// What is in the way when the time is up; it is tried on.
    pub async fn wait_announced(&mut self, limit: Duration) -> Result<()> {
        let mut told = match &self.seat {
            Seat::Manager(part) => part.announced(),
            Seat::Vacant(vacant) => return Err(anyhow!(vacant.reason.clone())),
            Seat::Worker | Seat::Locked => return Ok(()),
        };
        let done = async { told.wait_for(Announced::is_done).await.is_ok() };
        if tokio::time::timeout(limit, done).await.unwrap_or(false) {
            self.announced().await;
            return Ok(());
        }
        let last = told.borrow().problem().to_owned();
        Err(anyhow!("no answer in {} s; the last one: {}", limit.as_secs(), if last.is_empty() { "none" } else { &last }))
    }

    /// From now on this manager can be used like any other.
    async fn announced(&mut self) {
        if self.node.joining {
            self.node.joining = false;
            if let Err(error) = self.node.save(&self.parts.config.data_dir) {
                tracing::warn!(error = %format!("{error:#}"), "the next start announces this manager once more");
            }
            tracing::info!(raft_id = self.node.raft_id, "this node is a manager now");
        }
        self.use_local_manager(true).await;
    }

    async fn use_local_manager(&self, yes: bool) {
        let address = yes.then(|| beside(self.node.listen_addr).to_string());
        if *self.local.borrow() != address {
            self.local.send_replace(address.clone());
            self.agent.beside(address).await;
        }
    }

    fn save_node(&self) -> Result<()> {
        self.node.save(&self.parts.config.data_dir).context("cannot note what this node is")
    }

    /// Ends all parts and leaves the tasks running. A leader hands over before anything else: what ends afterwards takes time, in which
    /// the others could not write if the machine were switched off meanwhile. The agent ends before the manager beside it, which passes
    /// its farewell on.
    pub async fn stop(self) {
        if let Seat::Manager(part) = &self.seat {
            part.hand_over().await;
        }
        if let Some(renewer) = self.renewer {
            renewer.stop().await;
        }
        self.agent.stop().await;
        if let Seat::Manager(part) = self.seat {
            // Somebody may have given it back.
            part.hand_over().await;
            part.stop().await;
        }
    }
}
