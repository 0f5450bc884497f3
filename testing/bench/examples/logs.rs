//! The inner part of D4: output from a fifo through the log writer's process and its files to a follower. How long 100 MB take, and what
//! processor time writer and follower need for them, without a shim, HTTP and a client.
//!
//! ```sh
//! cargo run --release -p skep-bench --example logs
//! ```

use anyhow::{Context as _, Result, ensure};
use skep_agent::{LogQuery, Tail, read_logs, run_log_writer};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const LINE: usize = 100;
const LINES: usize = 1_000_000;
/// As much as a shim copies at once.
const BLOCK: usize = 32 << 10;
const ROUNDS: usize = 5;
const TASK: &str = "task1task1task1task1task1";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    if let (Some(mode), Some(dir)) = (arguments.next(), arguments.next()) {
        ensure!(mode == "writer", "what is {mode}?");
        return Ok(run_log_writer(Path::new(&dir))?);
    }
    let text: String = (0..LINES).map(|number| format!("{number:0width$}\n", width = LINE - 1)).collect();
    println!("{:>8} {:>12} {:>14} {:>8}", "wall s", "writer CPU s", "follower CPU s", "lost");
    for _ in 0..ROUNDS {
        round(text.as_bytes())?;
    }
    Ok(())
}

/// Processor time of this thread or of another process, in seconds.
fn cpu_of(path: &str) -> Result<f64> {
    let text = std::fs::read_to_string(path)?;
    let nanoseconds: f64 = text.split_whitespace().next().context("no figure")?.parse()?;
    Ok(nanoseconds / 1e9)
}

fn own_cpu() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

fn round(text: &[u8]) -> Result<()> {
    let dir = tempfile::tempdir_in("/var/tmp")?;
    let mut writer = Command::new(std::env::current_exe()?).arg("writer").arg(dir.path()).stdout(Stdio::piped()).spawn()?;
    let mut ready = String::new();
    BufReader::new(writer.stdout.take().context("no output")?).read_line(&mut ready)?;
    let fifo = dir.path().join("out");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let mut socket = BufReader::new(UnixStream::connect(dir.path().join("logs.sock"))?);
    let mut say = |request: serde_json::Value| -> Result<()> {
        socket.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut answer = String::new();
        socket.read_line(&mut answer)?;
        ensure!(!answer.contains(r#""error":""#), "{answer}");
        Ok(())
    };
    let logs = dir.path().join("logs");
    let options = serde_json::json!({ "max_size": 10 << 20, "max_file": 3, "discard": false });
    say(serde_json::json!({ "op": "open", "task": TASK, "stdout": fifo, "dir": logs, "options": options }))?;
    let schedstat = format!("/proc/{}/schedstat", writer.id());
    let (writer_before, before, began) = (cpu_of(&schedstat)?, own_cpu()?, Instant::now());
    let (seen, producer) = std::thread::scope(|scope| -> Result<(Vec<u8>, f64)> {
        let producer = scope.spawn(|| -> Result<f64> {
            let mut out: File = OpenOptions::new().write(true).open(&fifo)?;
            for block in text.chunks(BLOCK) {
                out.write_all(block)?;
            }
            cpu_of("/proc/thread-self/schedstat")
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let logs = logs.clone();
        let follower = scope.spawn(move || follow(&logs, stopped));
        let producer = producer.join().expect("no panic")?;
        say(serde_json::json!({ "op": "finish", "task": TASK }))?;
        stop.cancel();
        Ok((follower.join().expect("no panic")?, producer))
    })?;
    let wall = began.elapsed().as_secs_f64();
    let (of_writer, own) = (cpu_of(&schedstat)? - writer_before, own_cpu()? - before - producer);
    writer.kill()?;
    writer.wait()?;
    let lost = if seen == text { 0 } else { text.len().abs_diff(seen.len()).max(1) };
    println!("{wall:>8.2} {of_writer:>12.2} {own:>14.2} {lost:>8}");
    Ok(())
}

fn follow(logs: &Path, stop: CancellationToken) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let query = LogQuery { stdout: true, stderr: true, since: None, tail: Tail::All, follow: true };
        let (sender, mut lines) = tokio::sync::mpsc::channel(4);
        let reading = tokio::spawn(read_logs(logs.to_owned(), query, sender, stop));
        let mut seen = Vec::with_capacity(LINES * LINE);
        while let Some(batch) = tokio::time::timeout(Duration::from_secs(60), lines.recv()).await? {
            for line in batch {
                seen.extend_from_slice(&line.data);
            }
        }
        reading.await??;
        Ok(seen)
    })
}
