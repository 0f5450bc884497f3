use crate::api::{Api, runtime};
use anyhow::{Context, Result, ensure};
use skep_proto::v1;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A write that got no answer within this is given up; whether it was done is not known.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two writes of one writer: the machine has other work too.
const PAUSE: Duration = Duration::from_millis(10);

/// Clients that write all the time, each a config with a name of its own, and go to the next manager when one fails.
pub struct Journal {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<Entry>>>,
}

/// One write.
#[derive(Debug, Clone)]
struct Entry {
    name: String,
    begun: Instant,
    ended: Instant,
    /// Why it failed; nothing if it was acknowledged.
    problem: Option<String>,
}

impl Journal {
    /// # Errors
    /// If TLS cannot be set up.
    pub fn start(sockets: &[PathBuf], writers: usize) -> Result<Self> {
        static RUN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let stop = Arc::new(AtomicBool::new(false));
        let mut handles = Vec::new();
        for writer in 0..writers {
            let apis = sockets.iter().map(|socket| Api::new(socket)).collect::<Result<Vec<_>>>()?;
            let stop = Arc::clone(&stop);
            handles.push(runtime().spawn(async move {
                let mut entries = Vec::new();
                let mut at = writer;
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("journal{run}-{writer}-{number}");
                    let entry = write(&apis[at % apis.len()], name).await;
                    at += usize::from(entry.problem.is_some());
                    entries.push(entry);
                    tokio::time::sleep(PAUSE).await;
                }
                entries
            }));
        }
        Ok(Self { stop, writers: handles })
    }

    /// Ends all writers.
    ///
    /// # Errors
    /// If nothing at all was acknowledged: such a journal proves nothing.
    pub fn end(self) -> Result<Record> {
        self.stop.store(true, Ordering::Relaxed);
        let mut entries = Vec::new();
        for writer in self.writers {
            entries.extend(runtime().block_on(writer)?);
        }
        let record = Record { entries };
        let problems: BTreeSet<&String> = record.entries.iter().filter_map(|entry| entry.problem.as_ref()).collect();
        ensure!(record.acknowledged() > 0, "no write was acknowledged: {problems:?}");
        Ok(record)
    }
}

async fn write(api: &Api, name: String) -> Entry {
    let annotations = v1::Annotations { name: name.clone(), ..v1::Annotations::default() };
    let spec = v1::ConfigSpec { annotations: Some(annotations), data: name.clone().into_bytes(), ..v1::ConfigSpec::default() };
    let begun = Instant::now();
    let mut control = api.control();
    let call = control.create_config(v1::CreateConfigRequest { spec: Some(spec) });
    let problem = match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(_)) => None,
        Ok(Err(status)) => Some(format!("{:?}: {}", status.code(), status.message())),
        Err(_) => Some(format!("no answer within {PATIENCE:?}")),
    };
    Entry { name, begun, ended: Instant::now(), problem }
}

/// What came of the writes.
#[derive(Debug, Clone)]
pub struct Record {
    entries: Vec<Entry>,
}

impl Record {
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.entries.iter().filter(|entry| entry.problem.is_none()).count()
    }

    /// Writes that failed or got no answer: each may have been done or not.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.entries.len() - self.acknowledged()
    }

    /// How long after `at` the first write that was begun later was acknowledged.
    #[must_use]
    pub fn next_after(&self, at: Instant) -> Option<Duration> {
        let good = self.entries.iter().filter(|entry| entry.problem.is_none() && entry.begun >= at);
        good.map(|entry| entry.ended - at).min()
    }

    /// Prints what came of it, and tells how long after `at` the next write was acknowledged.
    ///
    /// # Errors
    /// If there was none.
    pub fn told(&self, what: &str, at: Instant) -> Result<Duration> {
        let next = self.next_after(at).with_context(|| format!("{what}: no write was acknowledged any more: {:?}", self.problems()))?;
        eprintln!(
            "{what}: next write after {next:?}, longest silence {:?}; {} acknowledged, {} failed {:?}",
            self.longest_silence(),
            self.acknowledged(),
            self.failed(),
            self.problems()
        );
        Ok(next)
    }

    /// The longest time in which nothing was acknowledged.
    #[must_use]
    pub fn longest_silence(&self) -> Duration {
        let mut ends: Vec<Instant> = self.entries.iter().filter(|entry| entry.problem.is_none()).map(|entry| entry.ended).collect();
        ends.sort();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Why writes failed, each reason once.
    #[must_use]
    pub fn problems(&self) -> BTreeSet<String> {
        self.entries.iter().filter_map(|entry| entry.problem.clone()).collect()
    }

    /// # Errors
    /// If a write that was acknowledged is not among `there`.
    pub fn all_in(&self, there: &[String]) -> Result<()> {
        let there: BTreeSet<&str> = there.iter().map(String::as_str).collect();
        let good = self.entries.iter().filter(|entry| entry.problem.is_none());
        let lost: Vec<&str> = good.map(|entry| entry.name.as_str()).filter(|name| !there.contains(name)).collect();
        ensure!(lost.is_empty(), "{} acknowledged writes are lost: {:?}", lost.len(), &lost[..lost.len().min(10)]);
        Ok(())
    }
}
