//! A web responder for demonstrations and tests: says which task answered and which client address it saw.
//!
//! Standard library only, so that a static build of 1.5 MB is a whole image. Listens on `PORT` (default 8080),
//! on IPv6 and IPv4. Paths:
//!
//! * `/` – one line: host name, task, client address
//! * `/trace` – the same and what a test wants to know of whoever is led here: `told`, when `SIGTERM` came to `whoami graceful`, in
//!   nanoseconds since 1970 (0: it did not), and `unchecked=yes` where the variable `EXPECT_CHECK` is set and `/health` was not asked yet
//! * `/health` – 200, or 500 after `/fail` was asked for
//! * `/fail` – turns `/health` bad
//! * `/exit?CODE` – ends the process with that code
//! * `/env` – the environment, one variable a line
//! * `/file?PATH` – owner, group, mode and text of a file, as the task sees it
//! * `/slow?MILLIS` – answers late
//!
//! `whoami check` asks its own `/health` and exits 0 or 1: a health check for images without a shell.
//! `SIGTERM` ends it at once with code 0; `whoami stubborn` ignores it, for tests of the grace period.
//! `whoami graceful` answers on `SIGTERM` all connections that clients have made, then ends, as a good web server does.
//! `whoami stamp PATH` writes the time of its first instruction to PATH, then waits: for benchmarks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Connections that are being answered.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static TOLD_TO_END: AtomicBool = AtomicBool::new(false);
/// When, in nanoseconds since 1970; 0: not yet.
static TOLD_AT: AtomicU64 = AtomicU64::new(0);
static CHECKED: AtomicBool = AtomicBool::new(false);
static HEALTHY: AtomicBool = AtomicBool::new(true);

mod termination {
    #![allow(unsafe_code, reason = "the standard library cannot set a signal handler")]

    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        fn _exit(code: i32) -> !;
    }

    const SIGTERM: i32 = 15;

    extern "C" fn exit_now(_: i32) {
        // SAFETY: _exit(2) is async-signal-safe and does not return.
        unsafe { _exit(0) }
    }

    extern "C" fn carry_on(_: i32) {}

    extern "C" fn note(_: i32) {
        // clock_gettime(2) is async-signal-safe, too.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
        super::TOLD_AT.store(now, super::Ordering::SeqCst);
        super::TOLD_TO_END.store(true, super::Ordering::SeqCst);
    }

    /// Instead of what [`on_sigterm`] chose.
    pub fn note_sigterm() {
        // SAFETY: as in `on_sigterm`; storing into an atomic is async-signal-safe.
        unsafe { signal(SIGTERM, note) };
    }

    /// Pid 1 has no default action for SIGTERM: without a handler it would be ignored.
    pub fn on_sigterm(exits: bool) {
        // SAFETY: signal(2) of libc, which std links; the handlers are async-signal-safe functions that live for ever.
        unsafe { signal(SIGTERM, if exits { exit_now } else { carry_on }) };
    }
}

fn main() {
    let born = std::time::SystemTime::now();
    termination::on_sigterm(std::env::args().nth(1).as_deref() != Some("stubborn"));
    let port: u16 = std::env::var("PORT").ok().and_then(|text| text.parse().ok()).unwrap_or(8080);
    match std::env::args().nth(1).as_deref() {
        Some("check") => std::process::exit(i32::from(!check(port))),
        Some("exit") => std::process::exit(std::env::args().nth(2).and_then(|code| code.parse().ok()).unwrap_or(0)),
        Some("sleep" | "stubborn") => loop {
            std::thread::park();
        },
        Some("stamp") => stamp(born),
        Some("lines") => lines(),
        Some("hog") => hog(),
        _ => serve(port),
    }
}

/// Writes when this program began, in nanoseconds since 1970, then waits.
fn stamp(born: std::time::SystemTime) {
    let nanos = born.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let path = std::env::args().nth(2).unwrap_or_else(|| "/stamp".into());
    let written = std::fs::File::options().append(true).open(&path).and_then(|mut file| file.write_all(format!("{nanos}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("cannot write to {path}: {error}");
        std::process::exit(1);
    }
    loop {
        std::thread::park();
    }
}

/// Writes numbered lines to both streams, then ends: for tests of logs.
fn lines() {
    let count = std::env::args().nth(2).and_then(|count| count.parse().ok()).unwrap_or(3u64);
    for number in 0..count {
        println!("out {number}");
        eprintln!("err {number}");
    }
}

/// Takes memory until there is none: for tests of limits.
fn hog() {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1u8; 1 << 20]);
        std::hint::black_box(&taken);
    }
}

fn serve(port: u16) {
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))).unwrap_or_else(|error| {
        eprintln!("cannot listen on port {port}: {error}");
        std::process::exit(1);
    });
    println!("listening on port {port} as {}", host_name());
    let is_graceful = std::env::args().nth(1).as_deref() == Some("graceful");
    if is_graceful {
        termination::note_sigterm();
        // The queue of the kernel must be seen to be empty: what is in it when the socket is closed would be reset.
        let _ = listener.set_nonblocking(true);
    }
    loop {
        match listener.accept() {
            Ok((stream, _)) => take(stream),
            Err(error) if is_graceful && error.kind() == std::io::ErrorKind::WouldBlock => {
                if TOLD_TO_END.load(Ordering::SeqCst) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(_) => {}
        }
    }
    while UNDER_WAY.load(Ordering::SeqCst) != 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn take(stream: TcpStream) {
    UNDER_WAY.fetch_add(1, Ordering::SeqCst);
    std::thread::spawn(move || {
        let _ = answer(&stream);
        drop(stream);
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    });
}

fn host_name() -> String {
    std::fs::read_to_string("/etc/hostname")
        .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"))
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// IPv4 clients on an IPv6 socket look like `::ffff:1.2.3.4`; people want `1.2.3.4`.
fn plain(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let client = plain(stream.peer_addr()?);
    let mut reader = BufReader::new(stream).take(16 << 10);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut close = request.trim_end().ends_with("HTTP/1.0");
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            close |= header.to_ascii_lowercase().starts_with("connection: close");
        }
        reader.set_limit(16 << 10);
        let target = request.split(' ').nth(1).unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        println!("{client} {}", request.trim_end());
        let (status, body) = respond(path, query, client);
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n{body}",
            body.len(),
            if close { "close" } else { "keep-alive" }
        )?;
        stream.flush()?;
        if close {
            return Ok(());
        }
    }
}

fn respond(path: &str, query: &str, client: IpAddr) -> (&'static str, String) {
    match path {
        "/" => {
            let task = std::env::var("TASK").unwrap_or_default();
            let task = if task.is_empty() { String::new() } else { format!(" task={task}") };
            ("200 OK", format!("host={}{task} client={client}\n", host_name()))
        }
        "/trace" => {
            let is_unchecked = std::env::var_os("EXPECT_CHECK").is_some() && !CHECKED.load(Ordering::SeqCst);
            let unchecked = if is_unchecked { " unchecked=yes" } else { "" };
            let told = TOLD_AT.load(Ordering::SeqCst);
            ("200 OK", format!("host={} client={client} told={told}{unchecked}\n", host_name()))
        }
        "/health" if HEALTHY.load(Ordering::Relaxed) => {
            CHECKED.store(true, Ordering::SeqCst);
            ("200 OK", "healthy\n".into())
        }
        "/health" => ("500 Internal Server Error", "unhealthy\n".into()),
        "/fail" => {
            HEALTHY.store(false, Ordering::Relaxed);
            ("200 OK", "unhealthy from now on\n".into())
        }
        "/exit" => std::process::exit(query.parse().unwrap_or(1)),
        "/env" => ("200 OK", std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
        "/file" => file(query),
        "/slow" => {
            std::thread::sleep(Duration::from_millis(query.parse().unwrap_or(1000)));
            ("200 OK", "slow\n".into())
        }
        _ => ("404 Not Found", "no such path\n".into()),
    }
}

fn file(path: &str) -> (&'static str, String) {
    use std::os::unix::fs::MetadataExt;
    let read = std::fs::metadata(path).and_then(|about| Ok((about, std::fs::read_to_string(path)?)));
    match read {
        Ok((about, text)) => ("200 OK", format!("{}:{} {:o} {text}\n", about.uid(), about.gid(), about.mode() & 0o7777)),
        Err(error) => ("404 Not Found", format!("{path}: {error}\n")),
    }
}

fn check(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut status = String::new();
        BufReader::new(stream).read_line(&mut status)?;
        Ok(status.contains(" 200 "))
    };
    ask().unwrap_or(false)
}
