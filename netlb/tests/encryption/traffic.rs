//! Traffic that lasts.

use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PORT: u16 = 5001;

/// A connection over which numbers go one way and come back, one after the other, until it is ended.
pub struct Stream {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    from: PathBuf,
}

impl Stream {
    pub fn start(from: &Path, to: &Path, address: &str) -> Self {
        let listener = within(to, || TcpListener::bind(("0.0.0.0", PORT)).unwrap());
        let mut stream = within(from, || connect(address, PORT)).unwrap();
        let mut echo = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(crate::hosts::LONG)).unwrap();
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let answers = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = echo.read(&mut buffer) {
                echo.write_all(&buffer[..length]).unwrap();
            }
        });
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let asks = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let number = counted.load(Ordering::Relaxed).to_be_bytes();
                stream.write_all(&number).unwrap();
                let mut back = [0; 8];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(back, number);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, rounds, threads: vec![asks, answers], from: from.to_owned() }
    }

    /// Waits for another number to come back.
    pub fn goes_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        eventually("the stream goes on", || self.rounds.load(Ordering::Relaxed) > before);
    }

    /// How many segments its host sent again.
    pub fn end(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let netns = format!("--net={}", self.from.display());
        let counters = run_quietly("nsenter", &[&netns, "cat", "/proc/net/snmp"]).unwrap();
        let mut lines = counters.lines().filter(|line| line.starts_with("Tcp:"));
        let at = lines.next().unwrap().split(' ').position(|name| name == "RetransSegs").unwrap();
        let again = lines.next().unwrap().split(' ').nth(at).unwrap();
        format!("{again} segments in {} rounds", self.rounds.load(Ordering::Relaxed))
    }
}

/// Megabits a second over one TCP connection for some seconds, and the CPU seconds of this process in each.
pub fn throughput(from: &Path, to: &Path, address: &str) -> (f64, f64) {
    const FOR: Duration = Duration::from_secs(8);
    let listener = within(to, || TcpListener::bind(("0.0.0.0", PORT + 1)).unwrap());
    let mut stream = within(from, || connect(address, PORT + 1)).unwrap();
    let mut sink = listener.accept().unwrap().0;
    let (start, cpu) = (Instant::now(), cpu_ms());
    let sender = std::thread::spawn(move || {
        let block = vec![7; 1 << 16];
        while start.elapsed() < FOR {
            stream.write_all(&block).unwrap();
        }
    });
    let mut received = 0;
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = sink.read(&mut buffer) {
        received += length;
    }
    sender.join().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    (received as f64 * 8e-6 / seconds, (cpu_ms() - cpu) / 1e3 / seconds)
}
