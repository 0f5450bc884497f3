//! Many agents in one process.

use crate::agent::Agent;
use crate::managers::Managers;
use crate::member::Member;
use crate::play::Behaviour;
use crate::tally::Tally;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How a fleet behaves.
#[derive(Debug, Clone, Default)]
pub struct FleetOptions {
    /// `host:port`; later those that managers list.
    pub managers: Vec<String>,
    pub behaviour: Behaviour,
    /// The first sessions begin at random moments within this time.
    pub spread: Duration,
}

/// What all agents of a fleet share.
pub(crate) struct Shared {
    pub(crate) managers: Managers,
    pub(crate) behaviour: Behaviour,
    pub(crate) tally: Arc<Tally>,
    pub(crate) stop: CancellationToken,
}

/// Agents that run. Dropping it ends them.
pub struct Fleet {
    shared: Arc<Shared>,
    agents: JoinSet<()>,
    pokes: Vec<Arc<Notify>>,
    next: AtomicUsize,
}

impl Fleet {
    /// Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(members: Vec<Member>, options: FleetOptions) -> Self {
        let shared = Arc::new(Shared {
            managers: Managers::new(&options.managers),
            behaviour: options.behaviour,
            tally: Arc::default(),
            stop: CancellationToken::new(),
        });
        let mut fleet = Self { shared, agents: JoinSet::new(), pokes: Vec::new(), next: AtomicUsize::new(0) };
        fleet.add(members, options.spread);
        fleet
    }

    /// More agents; their first sessions begin within `spread`.
    pub fn add(&mut self, members: Vec<Member>, spread: Duration) {
        for member in members {
            let poke = Arc::new(Notify::new());
            let agent = Agent::new(member, self.pokes.len(), self.shared.clone(), poke.clone());
            self.pokes.push(poke);
            self.agents.spawn(agent.run(spread.mul_f64(rand::random())));
        }
    }

    #[must_use]
    pub fn size(&self) -> usize {
        self.pokes.len()
    }

    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    /// The managers the agents know.
    #[must_use]
    pub fn managers(&self) -> Vec<String> {
        self.shared.managers.all().to_vec()
    }

    /// Lets one task of some agent fail, if it has one that runs; another agent's with each call.
    pub fn fail_one(&self) {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(poke) = self.pokes.get(next % self.pokes.len().max(1)) {
            poke.notify_one();
        }
    }

    /// Ends all sessions and waits for that.
    pub async fn stop(mut self) {
        self.shared.stop.cancel();
        while self.agents.join_next().await.is_some() {}
    }
}
