//! Telling the other managers of this one, until they have let it in. Later changes of its address are told by the manager itself.

use crate::agent::chain;
use skep_agent::ManagerAddress;
use skep_ca::SecurityConfig;
use skep_manager::join_managers;
use skep_store::Store;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// The pause between tries grows from the first to the second of these.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How far it is.
#[derive(Debug, Clone)]
pub enum Announced {
    /// Why it has not worked so far, for people; empty before the first answer.
    Trying(String),
    Done,
}

impl Announced {
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    pub fn problem(&self) -> &str {
        match self {
            Self::Trying(problem) => problem,
            Self::Done => "",
        }
    }
}

/// What is told, and to whom.
pub struct Announcement {
    pub security: SecurityConfig,
    pub store: Store,
    pub advertise: SocketAddr,
    /// Of the join command.
    pub seeds: Vec<String>,
    /// `<data>/agent/managers.json`
    pub managers_file: PathBuf,
    /// The manager of this node, which cannot let itself in.
    pub own: String,
}

impl Announcement {
    /// Until it is done. To be dropped when nobody wants it any more.
    pub async fn run(self, publish: watch::Sender<Announced>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let managers = self.managers();
            match join_managers(&self.security, &managers, self.store.raft_id(), self.advertise).await {
                Ok(()) => {
                    publish.send_replace(Announced::Done);
                    return;
                }
                Err(error) => {
                    let text = chain(&error);
                    tracing::warn!(?managers, error = text, "the other managers do not have this one yet");
                    publish.send_replace(Announced::Trying(text));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn managers(&self) -> Vec<String> {
        let members = self.store.status().members.into_iter().map(|member| member.member.addr);
        let known = std::fs::read(&self.managers_file).unwrap_or_default();
        let known: Vec<ManagerAddress> = serde_json::from_slice(&known).unwrap_or_default();
        let known = known.into_iter().map(|manager| manager.addr);
        others(members.chain(known).chain(self.seeds.iter().cloned()), &self.advertise.to_string(), &self.own)
    }
}

/// Each once, without this manager.
fn others(all: impl Iterator<Item = String>, advertise: &str, own: &str) -> Vec<String> {
    let mut others: Vec<String> = Vec::new();
    for address in all {
        if !address.is_empty() && address != advertise && address != own && !others.contains(&address) {
            others.push(address);
        }
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_asks_the_others_and_never_itself() {
        let all = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>().into_iter();
        assert_eq!(others(all(&["a:1", "me:1", "", "a:1", "127.0.0.1:1", "b:1"]), "me:1", "127.0.0.1:1"), ["a:1", "b:1"]);
    }
}
