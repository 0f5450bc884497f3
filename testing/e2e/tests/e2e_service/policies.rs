//! What services do by themselves when tasks fail: updates that roll back or wait for a person, restarts that come to an end.

use super::{SOON, explained};
use anyhow::{Result, ensure};
use skep_kit::{Lab, LabOptions, eventually, need_root};
use std::collections::BTreeSet;
use std::time::Instant;

const REPLICAS: usize = 4;
/// How many of them an update has down at once.
const PARALLELISM: usize = 2;
/// What the updates change.
const SPEC: &str =
    "{{.spec.task.runtime.Container.env}} {{.spec.task.runtime.Container.command}} {{.spec.task.runtime.Container.healthcheck}}";

fn inspect(lab: &Lab, format: &str) -> Result<String> {
    Ok(lab.ctl(&["service", "inspect", "--format", format, "web"])?.success()?.trim().to_owned())
}

/// Which tasks of `web` serve.
fn serving(lab: &Lab) -> Result<BTreeSet<String>> {
    let text = lab.ctl(&["service", "ps", "web", "--no-trunc", "--format", "{{.ID}} {{.DesiredState}} {{.CurrentState}}"])?.success()?;
    let runs = |line: &str| line.split_once(' ').filter(|(_, states)| states.starts_with("Running Running")).map(|(id, _)| id.to_owned());
    Ok(text.lines().filter_map(runs).collect())
}

/// Looks at the service, again and again, until its update has come to this state; fails if too few tasks serve meanwhile.
fn watch_until(lab: &Lab, state: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        // The state first: what serves must also be enough when it was reached.
        let now = inspect(lab, "{{.update_status.state}}: {{.update_status.message}}")?;
        let serving = serving(lab)?.len();
        ensure!(serving >= REPLICAS - PARALLELISM, "{serving} of {REPLICAS} serve while the update is {now}");
        if now.starts_with(state) {
            return Ok(());
        }
        ensure!(began.elapsed() < SOON, "wanted {state}, it is {now}");
    }
}

/// Four tasks of `whoami` that say `hello`, two of which are updated at a time.
fn four(lab: &Lab, action: &str) -> Result<BTreeSet<String>> {
    let (replicas, parallelism) = (REPLICAS.to_string(), PARALLELISM.to_string());
    let mut flags = vec!["service", "create", "-q", "--name", "web", "--replicas", &replicas, "--env", "GREETING=hello"];
    flags.extend([
        "--update-parallelism",
        &parallelism,
        "--update-delay",
        "300ms",
        "--update-monitor",
        "300ms",
        "--update-failure-action",
        action,
    ]);
    flags.extend(["--rollback-parallelism", &parallelism, "--rollback-monitor", "300ms", "--publish", "8080:8080", "whoami"]);
    lab.ctl(&flags)?.success()?;
    let first = serving(lab)?;
    ensure!(first.len() == REPLICAS, "{first:?}");
    Ok(first)
}

/// All four run, by the first specification.
fn all_are_as_before(lab: &Lab) -> Result<BTreeSet<String>> {
    let serving = eventually(SOON, "all run by the old specification", || {
        let serving = serving(lab)?;
        ensure!(serving.len() == REPLICAS, "{serving:?}");
        Ok(serving)
    })?;
    let url = format!("http://{}:8080/env", Lab::HOST);
    for _ in 0..2 * REPLICAS {
        let env = lab.curl(&url)?;
        ensure!(env.contains("GREETING=hello") && !env.contains("NEW="), "{env}");
    }
    Ok(serving)
}

#[test]
fn an_update_that_fails_rolls_back_by_itself_and_most_tasks_serve_all_the_time() -> Result<()> {
    if !need_root("rollback") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let first = four(&lab, "rollback")?;
    let before = inspect(&lab, SPEC)?;

    // A program that is not there: no task gets further than its start.
    let update = lab.ctl(&["service", "update", "-d", "--env-add", "NEW=1", "--entrypoint", "/no/such/program", "web"])?;
    update.success()?;
    watch_until(&lab, "RollbackCompleted")?;
    let second = all_are_as_before(&lab)?;
    let kept = first.intersection(&second).count();
    ensure!(kept >= REPLICAS - PARALLELISM, "tasks were replaced that the update had not come to: {first:?}, then {second:?}");
    let after = inspect(&lab, SPEC)?;
    ensure!(after == before, "the specification was {before}, and is {after}");

    // A health check that never succeeds; who waits for the update is told how it ended.
    let check = ["--health-exec", "/no/such/check", "--health-interval", "100ms", "--health-retries", "1"];
    let update = lab.ctl(&[&["service", "update", "-q", "--env-add", "NEW=2"], &check[..], &["web"]].concat())?;
    ensure!(update.status != 0 && update.stderr.contains("rolled back"), "{update:?}");
    watch_until(&lab, "RollbackCompleted")?;
    all_are_as_before(&lab)?;
    Ok(())
}

#[test]
fn an_update_that_fails_pauses_until_somebody_rolls_it_back() -> Result<()> {
    if !need_root("paused update") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let first = four(&lab, "pause")?;
    let update = lab.ctl(&["service", "update", "-d", "--env-add", "NEW=1", "--args", "exit 7", "web"])?;
    update.success()?;
    watch_until(&lab, "Paused")?;
    let left = serving(&lab)?;
    ensure!(left.len() >= REPLICAS - PARALLELISM && left.is_subset(&first), "{first:?}, then {left:?}");
    explained(&lab, &["service", "web"], &["paused", "service rollback"])?;

    lab.ctl(&["service", "rollback", "-d", "web"])?.success()?;
    watch_until(&lab, "RollbackCompleted")?;
    let second = all_are_as_before(&lab)?;
    ensure!(second.is_superset(&left), "tasks were replaced that the update had not come to: {left:?}, then {second:?}");
    Ok(())
}

/// The tasks of a service that were seen to have ended badly; no more than the attempts and one are kept.
#[derive(Default)]
struct Failed(BTreeSet<String>);

impl Failed {
    fn look(&mut self, lab: &Lab, service: &str) -> Result<usize> {
        let text = lab.ctl(&["service", "ps", service, "--no-trunc", "--format", "{{.ID}} {{.CurrentState}}"])?.success()?;
        let bad = text.lines().filter_map(|line| line.split_once(' ')).filter(|(_, state)| state.starts_with("Failed"));
        self.0.extend(bad.map(|(id, _)| id.to_owned()));
        Ok(self.0.len())
    }

    fn wait(&mut self, lab: &Lab, service: &str, wanted: usize) -> Result<()> {
        eventually(SOON, &format!("{wanted} of {service} have failed"), || {
            let count = self.look(lab, service)?;
            ensure!(count >= wanted, "{count}");
            Ok(())
        })
    }
}

#[test]
fn restarts_end_after_their_attempts_within_the_window_and_go_on_where_failures_are_rarer() -> Result<()> {
    if !need_root("restart window") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let crash = |name: &str, delay: &str, window: &str| {
        let attempts = ["--restart-max-attempts", "2", "--restart-delay", delay, "--restart-window", window];
        lab.ctl(&[&["service", "create", "-d", "--name", name], &attempts[..], &["whoami", "exit", "7"]].concat())?.success()
    };
    let (mut often, mut rarely) = (Failed::default(), Failed::default());
    crash("often", "100ms", "30s")?;
    // Two attempts never fall into one window.
    crash("rarely", "700ms", "600ms")?;
    often.wait(&lab, "often", 3)?;
    explained(
        &lab,
        &["service", "often"],
        &["not restarted", "--restart-max-attempts 2", "within its --restart-window of 30 s", "begins anew"],
    )?;
    rarely.wait(&lab, "rarely", 5)?;
    ensure!(often.look(&lab, "often")? == 3, "it went on");
    let told = lab.ctl(&["explain", "service", "rarely"])?.success()?;
    ensure!(!told.contains("not restarted"), "{told}");

    // As told: by force the attempts count anew.
    lab.ctl(&["service", "update", "-d", "--force", "often"])?.success()?;
    often.wait(&lab, "often", 6)?;
    explained(&lab, &["service", "often"], &["not restarted"])?;
    ensure!(often.look(&lab, "often")? == 6, "it went on");
    Ok(())
}
