//! Health checks as Docker makes them: when to probe, and what the answers mean (pure), and the loop that probes.

use crate::board::Board;
use crate::executor::{Executor, Probe};
use crate::task::Event;
use crate::task::drive::now;
use skep_types::{HealthConfig, TaskId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A check with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What to run; never empty.
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures in a row that make a task unhealthy.
    pub retries: u32,
    /// Failures within this time after the start do not count.
    pub start_period: Duration,
    /// Between probes within the start period, until the first success.
    pub start_interval: Duration,
}

/// A check nobody can make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("health check {test:?} is not understood; use NONE, CMD or CMD-SHELL followed by a command")]
pub struct BadHealthCheck {
    pub test: Vec<String>,
}

impl HealthCheck {
    /// The check that `spec` asks for, each absent part taken from the image's. `None` = none.
    ///
    /// # Errors
    /// If the test is not one of Docker's forms.
    pub fn merge(spec: Option<&HealthConfig>, image: Option<&HealthConfig>) -> Result<Option<Self>, BadHealthCheck> {
        let first = |pick: fn(&HealthConfig) -> Option<Duration>, default: u64| {
            let given = |config: Option<&HealthConfig>| config.and_then(pick).filter(|length| !length.is_zero());
            given(spec).or_else(|| given(image)).unwrap_or(Duration::from_secs(default))
        };
        let given = |config: Option<&HealthConfig>| config.map(|config| config.test.clone()).filter(|test| !test.is_empty());
        let Some(test) = given(spec).or_else(|| given(image)) else { return Ok(None) };
        let command = match test.split_first() {
            Some((kind, [])) if kind == "NONE" => return Ok(None),
            Some((kind, command)) if kind == "CMD" && !command.is_empty() => command.to_vec(),
            Some((kind, [line])) if kind == "CMD-SHELL" => vec!["/bin/sh".into(), "-c".into(), line.clone()],
            _ => return Err(BadHealthCheck { test }),
        };
        let retries = |config: Option<&HealthConfig>| config.map(|config| config.retries).filter(|retries| *retries > 0);
        Ok(Some(Self {
            command,
            interval: first(|config| config.interval, 30),
            timeout: first(|config| config.timeout, 30),
            retries: retries(spec).or_else(|| retries(image)).unwrap_or(3).unsigned_abs(),
            start_period: first(|config| config.start_period, 0),
            start_interval: first(|config| config.start_interval, 5),
        }))
    }

    /// The same in the form of the API, for keeping.
    #[must_use]
    pub fn to_config(&self) -> HealthConfig {
        HealthConfig {
            test: std::iter::once("CMD".to_owned()).chain(self.command.iter().cloned()).collect(),
            interval: Some(self.interval),
            timeout: Some(self.timeout),
            retries: i32::try_from(self.retries).unwrap_or(i32::MAX),
            start_period: Some(self.start_period),
            start_interval: Some(self.start_interval),
        }
    }
}

/// What a probe changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    Healthy,
    Unhealthy(String),
}

/// The health of one container so far.
#[derive(Debug, Clone)]
pub struct Health {
    check: HealthCheck,
    healthy: bool,
    failures: u32,
}

impl Health {
    #[must_use]
    pub fn new(check: HealthCheck, healthy: bool) -> Self {
        Self { check, healthy, failures: 0 }
    }

    /// Until the next probe, `age` after the start of the container.
    #[must_use]
    pub fn pause(&self, age: Duration) -> Duration {
        if !self.healthy && age < self.check.start_period { self.check.start_interval } else { self.check.interval }
    }

    /// Whether a failure of a probe that began `age` after the start counts.
    fn counts(&self, age: Duration) -> bool {
        self.healthy || age >= self.check.start_period
    }

    /// Takes in one probe that began `age` after the start of the container.
    pub fn probed(&mut self, probe: &Probe, age: Duration) -> Verdict {
        if probe.exit_code == Some(0) {
            self.failures = 0;
            return if std::mem::replace(&mut self.healthy, true) { Verdict::Nothing } else { Verdict::Healthy };
        }
        if !self.counts(age) {
            return Verdict::Nothing;
        }
        self.failures += 1;
        if self.failures < self.check.retries {
            return Verdict::Nothing;
        }
        let how = match probe.exit_code {
            Some(code) => format!("ended with exit code {code}"),
            None => format!("did not end within {} s", self.check.timeout.as_secs_f32()),
        };
        let said = probe.output.trim();
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        Verdict::Unhealthy(format!("unhealthy container: its health check {how}, {} times in a row{said}", self.failures))
    }
}

/// Probes until the container is unhealthy or `stop` is cancelled. A probe that has begun is finished first: a shim that starts a
/// process whose output nobody takes waits for half a minute and does nothing else meanwhile, such as sending a signal. One that
/// cannot be made says nothing about health: containerd may be restarting, and the end of the container is seen elsewhere.
pub(crate) async fn watch(
    executor: Arc<dyn Executor>,
    task: TaskId,
    check: HealthCheck,
    healthy: bool,
    report: (mpsc::Sender<Event>, Board),
    stop: CancellationToken,
) {
    let (events, board) = report;
    let started = Instant::now();
    let mut health = Health::new(check.clone(), healthy);
    loop {
        let pause = tokio::time::sleep(health.pause(started.elapsed()));
        if stop.run_until_cancelled(pause).await.is_none() {
            return;
        }
        let age = started.elapsed();
        let began = now();
        let probed = executor.probe(&task, &check.command, check.timeout).await;
        if stop.is_cancelled() {
            return;
        }
        let probe = match probed {
            Ok(probe) => probe,
            Err(error) if error.is_temporary() => {
                tracing::debug!(error = %error.words(), "health check could not be made");
                continue;
            }
            // Such as a command that is not in the image: as bad as one that fails.
            Err(error) => Probe { exit_code: Some(126), output: error.words() },
        };
        board.probed(&task, began, &probe, health.counts(age), check.retries);
        let verdict = health.probed(&probe, age);
        let event = match verdict {
            Verdict::Nothing => continue,
            Verdict::Healthy => Event::Healthy,
            Verdict::Unhealthy(words) => Event::Unhealthy(words),
        };
        let ends = matches!(event, Event::Unhealthy(_));
        if events.send(event).await.is_err() || ends {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(test: &[&str]) -> HealthConfig {
        HealthConfig { test: test.iter().map(|word| (*word).to_owned()).collect(), ..HealthConfig::default() }
    }

    fn check(retries: u32, start_period: u64) -> HealthCheck {
        HealthCheck {
            command: vec!["true".into()],
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(3),
            retries,
            start_period: Duration::from_secs(start_period),
            start_interval: Duration::from_secs(1),
        }
    }

    fn probe(code: i32) -> Probe {
        Probe { exit_code: Some(code), output: String::new() }
    }

    #[test]
    fn absent_parts_come_from_the_image_and_then_from_docker_s_defaults() {
        let image = HealthConfig { retries: 7, interval: Some(Duration::from_secs(2)), ..config(&["CMD-SHELL", "curl localhost"]) };
        let spec = HealthConfig { interval: Some(Duration::from_secs(4)), ..HealthConfig::default() };
        let merged = HealthCheck::merge(Some(&spec), Some(&image)).unwrap().unwrap();
        assert_eq!(merged.command, ["/bin/sh", "-c", "curl localhost"]);
        assert_eq!((merged.interval.as_secs(), merged.retries, merged.timeout.as_secs()), (4, 7, 30));
        assert_eq!(HealthCheck::merge(Some(&config(&["NONE"])), Some(&image)).unwrap(), None);
        assert_eq!(HealthCheck::merge(None, None).unwrap(), None);
        assert!(HealthCheck::merge(Some(&config(&["curl"])), None).is_err());
        assert_eq!(HealthCheck::merge(Some(&merged.to_config()), None).unwrap(), Some(merged));
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_a_success_starts_the_count_again() {
        let mut health = Health::new(check(2, 0), false);
        let late = Duration::from_secs(100);
        assert_eq!(health.probed(&probe(1), late), Verdict::Nothing);
        assert_eq!(health.probed(&probe(0), late), Verdict::Healthy);
        assert_eq!(health.probed(&probe(1), late), Verdict::Nothing);
        let timed_out = Probe { exit_code: None, output: "no answer\n".into() };
        assert_eq!(
            health.probed(&timed_out, late),
            Verdict::Unhealthy("unhealthy container: its health check did not end within 3 s, 2 times in a row: no answer".into())
        );
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_until_the_first_success() {
        let mut health = Health::new(check(1, 60), false);
        let early = Duration::from_secs(5);
        assert_eq!(health.pause(early), Duration::from_secs(1));
        assert_eq!(health.probed(&probe(1), early), Verdict::Nothing);
        assert_eq!(health.probed(&probe(0), early), Verdict::Healthy);
        assert_eq!(health.pause(early), Duration::from_secs(10));
        assert!(matches!(health.probed(&probe(1), early), Verdict::Unhealthy(_)));
    }
}
