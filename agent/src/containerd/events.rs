//! Who waits for which exit, and the one subscription that tells.
//!
//! tonic's `subscribe` returns with the first event only, as containerd sends no headers before it (dependencies 2a,
//! pitfall 1): a private topic is published until it comes back, which also proves that the subscription is live before
//! the tasks are listed. After each connection the list says which exits were missed.

use super::client::{CALL_LIMIT, Client};
use crate::task::Outcome;
use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::{ListTasksRequest, PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use containerd_client::types::v1::Status as ProcessStatus;
use prost::Message;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Our own topic, to see that the subscription lives.
const TOPIC: &str = "/skep/alive";
/// How often it is published.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// A subscription that is silent for so long is made again.
const SILENCE_LIMIT: Duration = Duration::from_secs(50);
/// Between two attempts to get the first event.
const FIRST_EVENT_EVERY: Duration = Duration::from_millis(20);
/// Between two connections while containerd is away.
const RECONNECT: Duration = Duration::from_millis(200);

/// How the kernel lets us see whether memory ran out.
pub type OomProbe = Arc<dyn Fn(&str) -> u64 + Send + Sync>;

#[derive(Default)]
struct Entry {
    /// Its process was started: absence means that its end was missed.
    started: bool,
    ended: Option<Outcome>,
    oom: bool,
    waiters: Vec<oneshot::Sender<Outcome>>,
    execs: HashMap<String, oneshot::Sender<i32>>,
}

/// The table of exits.
#[derive(Clone)]
pub struct Exits {
    table: Arc<Mutex<HashMap<String, Entry>>>,
    oom: OomProbe,
    live: Arc<watch::Sender<bool>>,
}

impl Exits {
    #[must_use]
    pub fn new(oom: OomProbe) -> Self {
        Self { table: Arc::default(), oom, live: Arc::new(watch::Sender::new(false)) }
    }

    /// Waits until exits are being heard; a start before that could miss one.
    pub async fn wait_live(&self) {
        // The sender lives in `self`.
        let _ = self.live.subscribe().wait_for(|live| *live).await;
    }

    fn with<R>(&self, act: impl FnOnce(&mut HashMap<String, Entry>) -> R) -> R {
        act(&mut self.table.lock().expect("no panic while held"))
    }

    /// From before the start of a container on. A new process of the same name begins afresh.
    pub fn track(&self, container: &str) {
        self.with(|table| {
            let entry = table.entry(container.to_owned()).or_default();
            (entry.started, entry.ended, entry.oom) = (false, None, false);
        });
    }

    pub fn started(&self, container: &str) {
        self.with(|table| table.entry(container.to_owned()).or_default().started = true);
    }

    pub fn untrack(&self, container: &str) {
        self.with(|table| table.remove(container));
    }

    pub fn ended(&self, container: &str) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        self.with(|table| {
            let entry = table.entry(container.to_owned()).or_default();
            match &entry.ended {
                Some(outcome) => drop(sender.send(outcome.clone())),
                None => entry.waiters.push(sender),
            }
        });
        receiver
    }

    pub fn exec_ended(&self, container: &str, exec: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.with(|table| table.entry(container.to_owned()).or_default().execs.insert(exec.to_owned(), sender));
        receiver
    }

    pub fn forget_exec(&self, container: &str, exec: &str) {
        self.with(|table| table.get_mut(container).and_then(|entry| entry.execs.remove(exec)));
    }

    /// The end of a process: of the container's own when `exec` is its id, else of an exec.
    pub fn deliver(&self, container: &str, exec: &str, code: i32) {
        if exec != container && !exec.is_empty() {
            let waiter = self.with(|table| table.get_mut(container).and_then(|entry| entry.execs.remove(exec)));
            if let Some(waiter) = waiter {
                let _ = waiter.send(code); // who gave up waiting needs no answer
            }
            return;
        }
        let kills = if code == 0 { 0 } else { (self.oom)(container) };
        self.with(|table| {
            let Some(entry) = table.get_mut(container).filter(|entry| entry.ended.is_none()) else { return };
            let words = if code == 137 && (kills > 0 || entry.oom) {
                Some("out of memory: the container was killed at its memory limit; raise the limit or use less".to_owned())
            } else if kills > 0 {
                Some("out of memory: a process of the container was killed at its memory limit".to_owned())
            } else {
                None
            };
            let outcome = Outcome { exit_code: code, words };
            for waiter in entry.waiters.drain(..) {
                let _ = waiter.send(outcome.clone());
            }
            entry.ended = Some(outcome);
        });
    }

    fn event(&self, envelope: &Envelope) {
        let Some(event) = &envelope.event else { return };
        match envelope.topic.as_str() {
            "/tasks/exit" => {
                if let Ok(exit) = TaskExit::decode(event.value.as_slice()) {
                    self.deliver(&exit.container_id, &exit.id, exit.exit_status.cast_signed());
                }
            }
            "/tasks/oom" => {
                if let Ok(oom) = TaskOom::decode(event.value.as_slice()) {
                    self.with(|table| table.get_mut(&oom.container_id).map(|entry| entry.oom = true));
                }
            }
            _ => {}
        }
    }

    /// Finds the exits that nobody told us of.
    async fn reconcile(&self, client: &Client) -> Result<(), super::client::CallError> {
        let request = client.request(ListTasksRequest::default());
        let processes = client.call("list tasks", CALL_LIMIT, client.tasks().list(request)).await?.tasks;
        let running: HashMap<&str, &containerd_client::types::v1::Process> =
            processes.iter().map(|process| (process.id.as_str(), process)).collect();
        let started: Vec<String> =
            self.with(|table| table.iter().filter(|(_, e)| e.started && e.ended.is_none()).map(|(id, _)| id.clone()).collect());
        for container in started {
            match running.get(container.as_str()) {
                Some(process) if process.status == ProcessStatus::Stopped as i32 => {
                    self.deliver(&container, &container, process.exit_status.cast_signed());
                }
                Some(_) => {}
                None => {
                    tracing::warn!(container, "a process ended while containerd was away; its exit code is lost");
                    self.deliver(&container, &container, 255);
                }
            }
        }
        Ok(())
    }

    /// Hears exits until `stop`; connects again whenever containerd went away.
    pub async fn listen(&self, client: Client, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                error = self.listen_once(&client) => {
                    self.live.send_replace(false);
                    tracing::warn!(error, "containerd's events are interrupted; connecting again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RECONNECT) => {}
            }
        }
    }

    /// One subscription, to its end; the reason of that.
    async fn listen_once(&self, client: &Client) -> String {
        let namespace = client.namespace();
        let filters = ["/tasks/exit", "/tasks/oom", TOPIC].map(|topic| format!("topic==\"{topic}\",namespace==\"{namespace}\"")).to_vec();
        let mut events = client.events();
        let request = client.request(SubscribeRequest { filters });
        let subscribe = events.subscribe(request);
        tokio::pin!(subscribe);
        let mut stream = loop {
            tokio::select! {
                answer = &mut subscribe => match answer {
                    Ok(answer) => break answer.into_inner(),
                    Err(status) => return status.message().to_owned(),
                },
                () = tokio::time::sleep(FIRST_EVENT_EVERY) => {
                    if let Err(error) = publish(client).await {
                        return error;
                    }
                }
            }
        };
        if let Err(error) = self.reconcile(client).await {
            return client.explain(error).words();
        }
        self.live.send_replace(true);
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        let mut silent_from = tokio::time::Instant::now();
        loop {
            tokio::select! {
                event = tokio::time::timeout_at(silent_from + SILENCE_LIMIT, stream.message()) => match event {
                    Ok(Ok(Some(envelope))) => {
                        silent_from = tokio::time::Instant::now();
                        self.event(&envelope);
                    }
                    Ok(Ok(None)) => return "containerd ended the subscription".into(),
                    Ok(Err(status)) => return status.message().to_owned(),
                    Err(_) => return "no event for a long time".into(),
                },
                _ = alive.tick() => if let Err(error) = publish(client).await {
                    return error;
                },
            }
        }
    }
}

async fn publish(client: &Client) -> Result<(), String> {
    // Any registered message will do; containerd refuses an event without a type.
    let event = containerd_client::to_any(&containerd_client::events::NamespaceDelete { name: String::new() });
    let request = client.request(PublishRequest { topic: TOPIC.into(), event: Some(event) });
    let answer = client.call("publish an event", CALL_LIMIT, client.events().publish(request)).await;
    answer.map(drop).map_err(|error| client.explain(error).words())
}

/// Counts the processes that the kernel killed in a cgroup for want of memory.
pub fn oom_probe(parent: String) -> OomProbe {
    Arc::new(move |container| {
        let parent = parent.trim_start_matches('/');
        // cgroup v1 (kernel 4.13 on), then v2.
        let v1 = PathBuf::from(format!("/sys/fs/cgroup/memory/{parent}/{container}/memory.oom_control"));
        let v2 = PathBuf::from(format!("/sys/fs/cgroup/{parent}/{container}/memory.events"));
        let text = std::fs::read_to_string(v1).or_else(|_| std::fs::read_to_string(v2)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(kills: u64) -> Exits {
        Exits::new(Arc::new(move |_| kills))
    }

    #[tokio::test]
    async fn an_exit_is_told_to_those_who_wait_and_to_those_who_ask_later() {
        let exits = exits(0);
        exits.track("c");
        let early = exits.ended("c");
        exits.deliver("c", "c", 3);
        exits.deliver("c", "c", 4);
        assert_eq!(early.await.unwrap().exit_code, 3);
        assert_eq!(exits.ended("c").await.unwrap().exit_code, 3);
    }

    #[tokio::test]
    async fn the_end_of_an_exec_is_not_the_end_of_the_container() {
        let exits = exits(0);
        exits.track("c");
        let mut container = exits.ended("c");
        let exec = exits.exec_ended("c", "probe1");
        exits.deliver("c", "probe1", 1);
        assert_eq!(exec.await.unwrap(), 1);
        assert!(container.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_kill_for_want_of_memory_is_told_in_words() {
        let exits = exits(1);
        exits.track("c");
        exits.deliver("c", "c", 137);
        assert!(exits.ended("c").await.unwrap().words.unwrap().starts_with("out of memory"));
    }

    #[tokio::test]
    async fn exits_of_strangers_are_not_kept() {
        let exits = exits(0);
        exits.deliver("stranger", "stranger", 1);
        assert!(exits.with(|table| table.is_empty()));
    }
}
