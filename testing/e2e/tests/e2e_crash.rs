//! Processes killed at bad moments: what runs goes on, what was begun is finished or cleaned, nothing leaks.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_kit::{Dice, Inventory, Lab, LabOptions, eventually, fail_points, need_root};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
/// The promise: the state is right this soon after a start.
const RIGHT_AFTER: Duration = Duration::from_secs(5);

/// Of the fail-points in the life of a service.
const ENOUGH: usize = 60;

/// How long it took each time until the state was right.
#[derive(Default)]
struct Healing(Vec<Duration>);

impl Healing {
    /// Waits as long as a starved machine may need.
    fn wait(&mut self, what: &str, probe: impl FnMut() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        eventually(SOON, what, probe)?;
        self.0.push(start.elapsed());
        Ok(())
    }

    /// Whether the promise was kept, but for the times when something else had the machine.
    fn was_in_time(mut self) -> Result<()> {
        self.0.sort();
        let (half, last) = (self.0[self.0.len() / 2], self.0[self.0.len() - 1]);
        eprintln!("right after {half:?} (median of {}), at the latest after {last:?}", self.0.len());
        ensure!(half < RIGHT_AFTER, "the median is {half:?}");
        Ok(())
    }
}

/// The processes of a service's running tasks.
fn pids(lab: &Lab, service: &str) -> Result<BTreeSet<u64>> {
    let ids = lab.ctl(&["service", "ps", service, "--no-trunc", "--format", "{{.ID}} {{.DesiredState}} {{.CurrentState}}"])?.success()?;
    let mut found = BTreeSet::new();
    for id in ids.lines().filter_map(|line| line.split_once(" Running Running ")).map(|(id, _)| id) {
        let text = lab.ctl(&["task", "inspect", id])?.success()?;
        let value: serde_json::Value = serde_json::from_str(&text)?;
        found.insert(value[0]["status"]["container"]["pid"].as_u64().context("no pid")?);
    }
    Ok(found)
}

/// Asks a URL again and again from the client until told to stop; counts answers and remembers failures.
struct Hammer {
    began: Instant,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hammer {
    fn start(lab: &Lab, url: String) -> Self {
        let (began, stop, answered, failures) = (Instant::now(), Arc::default(), Arc::default(), Arc::default());
        let mut hammer = Self { began, stop, answered, failures, thread: None };
        let (stop, answered, failures) = (hammer.stop.clone(), hammer.answered.clone(), hammer.failures.clone());
        let net = format!("--net=/run/netns/{}", lab.client_namespace());
        hammer.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let asked = began.elapsed();
                let failure = match skep_kit::run("nsenter", &[&net, "curl", "-sS", "--fail", "--max-time", "60", &url]) {
                    Ok(output) if output.status == 0 => {
                        answered.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    Ok(output) => format!("status {}, {}", output.status, output.stderr.trim()),
                    Err(error) => format!("{error:#}"),
                };
                let failure = format!("asked after {asked:.3?}, {:.3?} later: {failure}", began.elapsed() - asked);
                eprintln!("{failure}");
                failures.lock().expect("no panic while held").push(failure);
            }
        }));
        hammer
    }

    /// How long it has been asking: what its failures are told in.
    fn time(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends it when more than so many were answered, or one failed.
    fn end_after(self, wanted: usize) -> Result<usize> {
        eventually(SOON, "requests are answered", || {
            let (answered, failed) = (self.answered.load(Ordering::Relaxed), self.failures.lock().expect("no panic while held").len());
            ensure!(answered > wanted || failed > 0, "{answered} answered, none failed");
            Ok(())
        })?;
        self.end()
    }

    /// Ends it: how many were answered.
    ///
    /// # Errors
    /// If one was not.
    fn end(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the hammer does not panic");
        }
        let answered = self.answered.load(Ordering::Relaxed);
        let failures = self.failures.lock().expect("no panic while held");
        ensure!(failures.is_empty(), "{answered} requests were answered, {} failed:\n{}", failures.len(), failures.join("\n"));
        Ok(answered)
    }
}

#[test]
fn tasks_do_not_notice_that_skepd_is_killed_again_and_again() -> Result<()> {
    if !need_root("kill skepd") {
        return Ok(());
    }
    let mut lab = Lab::swarm(LabOptions::default())?;
    lab.ctl(&["service", "create", "-q", "--name", "web", "--replicas", "3", "--publish", "8080:8080", "whoami"])?.success()?;
    let before = pids(&lab, "web")?;
    ensure!(before.len() == 3, "{before:?}");
    let inventory = Inventory::take(&lab)?;
    let hammer = Hammer::start(&lab, format!("http://{}:8080/", Lab::HOST));
    let mut healing = Healing::default();
    for round in 0..10u64 {
        std::thread::sleep(Duration::from_millis(37 * round));
        lab.kill_skepd();
        lab.start_skepd()?;
        healing.wait("the state is right", || {
            ensure!(pids(&lab, "web")? == before, "{:?} became {:?}", before, pids(&lab, "web")?);
            Ok(())
        })?;
    }
    lab.stop_skepd()?;
    std::thread::sleep(Duration::from_millis(500));
    lab.start_skepd()?;
    healing.wait("the state is right after a clean stop", || {
        ensure!(pids(&lab, "web")? == before);
        Ok(())
    })?;
    healing.was_in_time()?;
    let answered = hammer.end_after(50)?;
    eventually(SOON, "nothing leaked", || Inventory::take(&lab)?.same_as(&inventory))?;
    let logs = lab.ctl(&["service", "logs", "--raw", "web"])?.success()?;
    let seen = logs.matches("GET / ").count();
    ensure!(seen == answered, "{answered} requests were answered, {seen} are in the logs");
    Ok(())
}

#[test]
fn tasks_do_not_notice_that_containerd_is_killed() -> Result<()> {
    if !need_root("kill containerd") {
        return Ok(());
    }
    let mut lab = Lab::swarm(LabOptions::default())?;
    lab.ctl(&["service", "create", "-q", "--name", "web", "--replicas", "2", "--publish", "8080:8080", "--restart-delay", "0s", "whoami"])?
        .success()?;
    let before = pids(&lab, "web")?;
    let hammer = Hammer::start(&lab, format!("http://{}:8080/", Lab::HOST));
    lab.kill_containerd();
    std::thread::sleep(Duration::from_millis(800));
    lab.start_containerd()?;
    lab.ctl(&["service", "scale", "-q", "web=3"])?.success()?;
    ensure!(pids(&lab, "web")?.is_superset(&before), "a task was touched");
    hammer.end_after(10)?;

    // A task that ends while containerd is away is noticed when it is back.
    let victim = *before.first().context("there are tasks")?;
    lab.kill_containerd();
    kill(Pid::from_raw(i32::try_from(victim)?), Signal::SIGKILL)?;
    std::thread::sleep(Duration::from_millis(300));
    lab.start_containerd()?;
    eventually(SOON, "the ended task is replaced", || {
        let now = pids(&lab, "web")?;
        ensure!(now.len() == 3 && !now.contains(&victim), "{now:?}");
        Ok(())
    })
}

/// The life of a service, so short that it can be lived a hundred times. Errors are expected: the daemon may die in the middle.
fn live(lab: &mut Lab) {
    // Another name for the same image: its blobs are read and checked anew.
    if let Ok(image) = skep_kit::whoami_image() {
        let _ = lab.ctl(&["image", "load", "-q", "-i", &image.to_string_lossy()]);
    }
    let mut steps: Vec<Vec<&str>> = vec![
        vec![
            "service",
            "create",
            "-d",
            "--name",
            "short",
            "--replicas",
            "2",
            "--publish",
            "9090:8080",
            "--restart-delay",
            "0s",
            "--mount",
            "source=data,target=/data",
            "whoami",
        ],
        vec!["service", "update", "-d", "--env-add", "A=1", "short"],
        vec!["service", "scale", "-d", "short=1"],
        vec!["service", "rm", "short"],
    ];
    for step in steps.drain(..) {
        if !lab.runs() {
            return;
        }
        let _ = lab.ctl(&step);
        std::thread::sleep(Duration::from_millis(350));
    }
}

/// The fail-points that the life of a service passes, by the daemon's own word, with a kill in the middle of it.
fn passed(lab: &mut Lab) -> Result<BTreeSet<String>> {
    let trace = lab.dir().join("trace");
    lab.stop_skepd()?;
    lab.set_environment(vec![("SKEP_FAILPOINT_TRACE".into(), trace.to_string_lossy().into_owned())]);
    lab.start_skepd()?;
    lab.ctl(&["service", "create", "-d", "--name", "short", "--replicas", "2", "whoami"])?.success()?;
    lab.kill_skepd();
    lab.start_skepd()?;
    lab.ctl(&["service", "rm", "short"])?.success()?;
    live(lab);
    lab.stop_skepd()?;
    lab.set_environment(Vec::new());
    lab.start_skepd()?;
    Ok(std::fs::read_to_string(trace)?.lines().map(str::to_owned).collect())
}

#[test]
fn a_kill_at_any_fail_point_heals_within_five_seconds_and_leaks_nothing() -> Result<()> {
    if !need_root("fail-points") {
        return Ok(());
    }
    let mut lab = Lab::swarm(LabOptions::default())?;
    // Those on other ways are for the tests that go them: of nodes, keys and backups in e2e_cluster_crashes and e2e_cluster_membership,
    // of images, networks and the store in the crates.
    let points = passed(&mut lab)?;
    ensure!(points.is_subset(&fail_points(&[""])?) && points.len() >= ENOUGH, "passed {points:?}");
    // A service that must not be touched by anything that follows.
    lab.ctl(&["service", "create", "-q", "--name", "steady", "--replicas", "2", "--publish", "8080:8080", "whoami"])?.success()?;
    let steady = pids(&lab, "steady")?;
    // The volume stays after its service, as with Docker: it is made before the inventory.
    live(&mut lab);
    let inventory = eventually(SOON, "the first life leaves nothing", || {
        ensure!(lab.ctl(&["service", "ps", "short"])?.status != 0);
        let taken = Inventory::take(&lab)?;
        ensure!(taken.count("container ") == 2, "containers are left");
        Ok(taken)
    })?;
    let hammer = Hammer::start(&lab, format!("http://{}:8080/", Lab::HOST));
    let only = std::env::var("SKEP_ONLY_FAILPOINT").ok();
    let (mut died_at, mut not_reached) = (BTreeSet::new(), BTreeSet::new());
    let mut problems = Vec::new();
    let mut healing = Healing::default();
    let mut heal = |lab: &mut Lab, what: &str| {
        let healed = (|| -> Result<()> {
            lab.kill_skepd();
            lab.set_environment(Vec::new());
            lab.start_skepd()?;
            let _ = lab.ctl(&["service", "rm", "short"]);
            healing.wait("it heals", || {
                ensure!(pids(lab, "steady")? == steady, "the steady service was touched");
                Inventory::take(lab)?.same_as(&inventory)
            })
        })();
        problems.extend(healed.err().map(|error| format!("{what}: {error:#}")));
    };
    let mut turn: BTreeSet<String> = points.into_iter().filter(|point| only.as_ref().is_none_or(|only| only == point)).collect();
    while !turn.is_empty() {
        for point in &turn {
            // It may die before it is ready: that is a kill during the start, and wanted.
            if lab.arm(Some(point))? {
                live(&mut lab);
            }
            let died = lab.skepd_died(Duration::from_millis(200));
            eprintln!("{:.3?} {point}: {}", hammer.time(), if died { "died" } else { "not reached" });
            if died { &mut died_at } else { &mut not_reached }.insert(point.clone());
            heal(&mut lab, point);
        }
        // On a busy machine a life does not get as far in its time: another one for those, as long as that helps.
        let enough = only.is_some() || died_at.len() >= ENOUGH || not_reached.len() == turn.len();
        turn = if enough { BTreeSet::new() } else { std::mem::take(&mut not_reached) };
    }
    if std::env::var("SKEP_E2E").is_ok_and(|which| which == "all") {
        let mut dice = Dice::cast("kills at any moment");
        for round in Dice::rounds(20) {
            let moment = dice.moment(0..3000);
            let pid = Pid::from_raw(i32::try_from(lab.skepd_pid().context("skepd runs")?)?);
            let killer = std::thread::spawn(move || {
                std::thread::sleep(moment);
                kill(pid, Signal::SIGKILL)
            });
            live(&mut lab);
            killer.join().expect("no panic in a thread")?;
            heal(&mut lab, &format!("round {round}, killed after {moment:?}"));
        }
    }
    let asked = hammer.end();
    eprintln!("killed at {} fail-points; not reached this time: {not_reached:?}", died_at.len());
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    healing.was_in_time()?;
    ensure!(only.is_some() || died_at.len() >= ENOUGH, "died at only {} fail-points; not reached: {not_reached:?}", died_at.len());
    asked.map(drop)
}

#[test]
fn a_swarm_that_is_made_or_left_half_way_is_cleared_away() -> Result<()> {
    if !need_root("init and leave") {
        return Ok(());
    }
    let points = fail_points(&["skepd."])?;
    for point in points {
        let mut lab = Lab::new(LabOptions { environment: vec![("SKEP_FAILPOINT".into(), point.clone())] })?;
        lab.spawn_skepd()?;
        lab.answers_or_dies()?;
        let _ = lab.ctl(&["cluster", "init", "--advertise-addr", Lab::HOST]);
        let _ = lab.ctl(&["cluster", "leave", "--force"]);
        lab.skepd_died(Duration::from_millis(300));
        lab.kill_skepd();
        lab.set_environment(Vec::new());
        lab.start_skepd()?;
        let status = lab.ctl(&["cluster", "status"])?.success()?;
        if status.contains("not in a cluster") {
            lab.ctl(&["cluster", "init", "--advertise-addr", Lab::HOST])?.success().context(point.clone())?;
        }
        eventually(SOON, &point, || {
            let nodes = lab.ctl(&["node", "ls", "--format", "{{.Status}}"])?.success()?;
            ensure!(nodes.trim() == "Ready", "{nodes}");
            Ok(())
        })?;
        lab.ctl(&["cluster", "leave", "--force"])?.success()?;
        eventually(SOON, "everything is gone", || {
            let left = Inventory::take(&lab)?;
            ensure!(left.count("nft") == 0 && left.count("container ") == 0 && left.count("file") == 0, "{left:#?}");
            Ok(())
        })?;
    }
    Ok(())
}
