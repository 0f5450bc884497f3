//! B16: what lies about when nothing happens.

use crate::field::Field;
use crate::remains::pids;
use crate::report::{Goal, Report, Row};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Idle CPU and switches are counted over this time; fsyncs, seen through strace, over the next.
const IDLE: Duration = Duration::from_secs(30);
const TRACED: Duration = Duration::from_secs(60);
/// After the last task began to run or was removed.
const CALM: Duration = Duration::from_secs(8);
const TASKS: usize = 50;

/// One process's memory in KiB, and its threads.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    rss: f64,
    /// Shared pages counted by their share.
    pss: f64,
    threads: f64,
}

fn number(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    Memory { rss: number(&status, "VmRSS:"), pss: number(&rollup, "Pss:"), threads: number(&status, "Threads:") }
}

fn sum(pids: &[u32]) -> Memory {
    pids.iter().map(|pid| memory(*pid)).fold(Memory::default(), |all, one| Memory {
        rss: all.rss + one.rss,
        pss: all.pss + one.pss,
        threads: all.threads + one.threads,
    })
}

/// Seconds on a CPU and context switches of the threads that live now.
#[derive(Debug, Clone, Copy, Default)]
struct Activity {
    cpu: f64,
    switches: f64,
}

fn activity(pid: u32) -> Activity {
    let mut all = Activity::default();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let nanos: f64 = read("schedstat").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let status = read("status");
        all.cpu += nanos / 1e9;
        all.switches += number(&status, "voluntary_ctxt_switches:") + number(&status, "nonvoluntary_ctxt_switches:");
    }
    all
}

/// Percent of a core and switches a second of each process, over the same seconds.
fn idle(processes: &[u32]) -> Vec<Activity> {
    let before: Vec<Activity> = processes.iter().map(|pid| activity(*pid)).collect();
    let start = Instant::now();
    std::thread::sleep(IDLE);
    let seconds = start.elapsed().as_secs_f64();
    let change = |(pid, before): (&u32, Activity)| {
        let after = activity(*pid);
        Activity { cpu: (after.cpu - before.cpu) / seconds * 100.0, switches: (after.switches - before.switches) / seconds }
    };
    processes.iter().zip(before).map(change).collect()
}

/// Calls a minute of what makes a disk write through, of each process; `None` where strace cannot look.
fn syncs(processes: &[u32], dir: &Path) -> Result<Option<Vec<f64>>> {
    let mut tracers: Vec<Child> = Vec::new();
    for pid in processes {
        let child = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range,msync,syncfs", "-o"])
            .arg(dir.join(format!("trace{pid}")))
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => tracers.push(child),
            Err(_) => return Ok(None),
        }
    }
    std::thread::sleep(TRACED);
    let mut blind = false;
    for tracer in &mut tracers {
        blind |= tracer.try_wait()?.is_some();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(tracer.id())?);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        tracer.wait()?;
    }
    if blind {
        return Ok(None);
    }
    let minutes = TRACED.as_secs_f64() / 60.0;
    let count = |pid: &u32| {
        std::fs::read_to_string(dir.join(format!("trace{pid}"))).unwrap_or_default().lines().filter(|line| line.contains("sync")).count()
    };
    Ok(Some(processes.iter().map(|pid| count(pid) as f64 / minutes).collect()))
}

const MIB: f64 = 1024.0;

/// # Errors
/// If skepd cannot be started or run tasks.
pub fn footprint(field: &Field) -> Result<Report> {
    let mut report = Report::new("B16", "footprint: one-node skepd beside dockerd");
    report.rounds = 1;
    let skepd = field.lab.skepd_pid().context("skepd does not run")?;
    let containerd = field.lab.containerd_pid().context("containerd does not run")?;
    let dockerd = field.dockerd.as_ref().map(|peer| peer.daemons()).unwrap_or_default();
    let processes: Vec<u32> = [skepd, containerd].into_iter().chain(dockerd.iter().copied()).collect();
    let names = ["skepd", "containerd of skepd", "dockerd", "containerd of dockerd"];
    let traces = tempfile::tempdir()?;

    let mut contenders = field.contenders(&[crate::peers::Network::Bridge], 1, 1)?;
    contenders.retain(|contender| !contender.name().starts_with("ctr") && !contender.name().starts_with("runc"));
    std::thread::sleep(CALM);
    let empty: Vec<Memory> = processes.iter().map(|pid| memory(*pid)).collect();
    let quiet = idle(&processes);
    let empty_syncs = syncs(&processes, traces.path())?;
    for contender in &mut contenders {
        contender.start(TASKS)?;
    }
    std::thread::sleep(CALM);
    let full: Vec<Memory> = processes.iter().map(|pid| memory(*pid)).collect();
    let loaded = idle(&processes);
    let full_syncs = syncs(&processes, traces.path())?;
    let lab = field.lab.dir().display().to_string();
    let helpers = pids(|command| command.contains("skepd") && command.contains(&lab) && !command.contains("nsenter"));
    let helpers: Vec<u32> = helpers.into_iter().filter(|pid| *pid != skepd).collect();
    let shims = pids(|command| command.contains("containerd-shim") && command.contains(&lab));
    let (writers, shims) = (sum(&helpers), sum(&shims));
    for contender in &mut contenders {
        contender.remove()?;
    }
    std::thread::sleep(CALM);
    let after: Vec<Memory> = processes.iter().map(|pid| memory(*pid)).collect();

    let row = |metric: String, unit: &'static str, goal: Option<Goal>, values: &dyn Fn(usize) -> f64| {
        let first = Row::plain(metric, unit, Some(values(0)), goal);
        (1..processes.len()).fold(first, |row, index| row.peer(names[index], values(index)))
    };
    let rows = &mut report.rows;
    rows.push(row("RSS, 0 tasks".into(), "MiB", Some(Goal::Value(40.0)), &|index| empty[index].rss / MIB));
    rows.push(row("PSS, 0 tasks".into(), "MiB", None, &|index| empty[index].pss / MIB));
    rows.push(row(format!("RSS, {TASKS} tasks"), "MiB", None, &|index| full[index].rss / MIB));
    rows.push(row(format!("RSS a task, of {TASKS}"), "KiB", Some(Goal::Value(100.0)), &|index| {
        (full[index].rss - empty[index].rss) / TASKS as f64
    }));
    rows.push(row(format!("RSS after {TASKS} tasks are gone"), "MiB", None, &|index| after[index].rss / MIB));
    rows.push(row("threads, 0 tasks".into(), "threads", None, &|index| empty[index].threads));
    rows.push(row(format!("threads, {TASKS} tasks"), "threads", None, &|index| full[index].threads));
    rows.push(row("idle CPU, 0 tasks".into(), "% of a core", Some(Goal::Value(0.1)), &|index| quiet[index].cpu));
    rows.push(row(format!("idle CPU, {TASKS} tasks"), "% of a core", Some(Goal::Value(0.1)), &|index| loaded[index].cpu));
    rows.push(row("context switches, 0 tasks".into(), "a second", None, &|index| quiet[index].switches));
    rows.push(row(format!("context switches, {TASKS} tasks"), "a second", None, &|index| loaded[index].switches));
    for (what, syncs) in [("0 tasks".to_owned(), empty_syncs), (format!("{TASKS} tasks"), full_syncs)] {
        match syncs {
            Some(syncs) => rows.push(row(format!("fsyncs, {what}"), "a minute", Some(Goal::Value(1.0)), &|index| syncs[index])),
            None => rows.push(Row::plain(format!("fsyncs, {what}"), "a minute", None, None).note("strace could not attach")),
        }
    }
    rows.push(row("program".into(), "MiB", None, &|index| program_size(processes[index])));
    report.remarks.push(format!(
        "beside skepd itself, {TASKS} tasks have {} processes of the skepd program (log writers: RSS {:.1} MiB, PSS {:.1} MiB in all) and containerd's shims \
         (RSS {:.0} MiB, PSS {:.0} MiB), which dockerd has too",
        helpers.len(),
        writers.rss / MIB,
        writers.pss / MIB,
        shims.rss / MIB,
        shims.pss / MIB,
    ));
    Ok(report)
}

fn program_size(pid: u32) -> f64 {
    std::fs::metadata(format!("/proc/{pid}/exe")).map_or(0.0, |file| file.len() as f64 / MIB / MIB)
}
