//! The program itself, static as it is delivered: `scripts/static debug` builds it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program beside the tests' directory; `None` = skipped.
fn init() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join("skep-init");
    if path.is_file() {
        return Some(path);
    }
    let why = format!("{} is not built; run scripts/static debug", path.display());
    assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "real tests are required: {why}");
    eprintln!("SKIPPED: {why}");
    None
}

/// A process that is killed with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts it and waits for its first line, `up`.
    fn start(command: &mut Command) -> (Self, BufReader<std::process::ChildStdout>) {
        let mut this = Self(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut output = BufReader::new(this.0.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), "up");
        (this, output)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn status(&mut self) -> Option<i32> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end");
    }
}

fn run(init: &Path, arguments: &[&str]) -> Output {
    Command::new(init).args(arguments).output().unwrap()
}

fn shell(init: &Path, script: &str) -> Command {
    let mut command = Command::new(init);
    command.args(["--", "sh", "-c", script]);
    command
}

fn send(pid: i32, signal: i32) {
    // By the program: the wrapper at hand knows no real-time signals.
    assert!(Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap().success());
}

/// Children of a process, zombies too.
fn children(parent: i32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent_of = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>().ok()
    };
    all.filter(|pid| parent_of(pid) == Some(parent)).collect()
}

fn wait_for_children(parent: i32, count: usize) {
    let begin = Instant::now();
    while children(parent).len() != count {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?} instead of {count}", children(parent));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_status_is_the_command_s() {
    let Some(init) = init() else { return };
    let cases = [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -KILL $$", 137), ("kill -TERM $$", 143), ("kill -37 $$", 165)];
    for (script, status) in cases {
        assert_eq!(run(&init, &["--", "sh", "-c", script]).status.code(), Some(status), "{script}");
    }
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--", "/no/such", "x"], 127, "skep-init: executable file not found: \"/no/such\""),
        (&["--", "no-such-program"], 127, "skep-init: executable file not found: \"no-such-program\""),
        (&["--", "/etc/passwd"], 126, "skep-init: \"/etc/passwd\" cannot be executed: Permission denied"),
        (&["sh"], 2, "skep-init: \"sh\" is not known; the command comes after --"),
    ];
    for (arguments, status, words) in cases {
        let output = run(&init, arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with(words), "{text}");
    }
}

#[test]
fn the_command_starts_with_no_signal_blocked_and_none_ignored() {
    let Some(init) = init() else { return };
    // Started by something that ignores two, as nohup and shells in the background do.
    let line = format!("trap '' HUP INT; exec {} -- cat /proc/self/status", init.display());
    let text = String::from_utf8(run(Path::new("sh"), &["-c", &line]).stdout).unwrap();
    let mask = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    // Two signals that glibc keeps for itself may stay ignored.
    assert_eq!(mask("SigIgn:") & !(1 << 31 | 1 << 32), 0, "{text}");
}

#[test]
fn every_signal_reaches_the_command() {
    let Some(init) = init() else { return };
    // Whose default is to end the process: the status tells that the same one arrived. 37 = SIGRTMIN+3.
    for signal in [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31, 34, 37, 64] {
        let (mut running, _output) = Running::start(&mut shell(&init, "ulimit -c 0; echo up; exec sleep 100"));
        send(running.pid(), signal);
        assert_eq!(running.status(), Some(128 + signal));
    }
    // Whose default is to stop it or to do nothing.
    for name in ["TTIN", "TTOU", "TSTP", "WINCH", "URG", "CONT"] {
        let script = format!("trap 'exit 9' {name}; echo up; while :; do sleep 0.02; done");
        let (mut running, _output) = Running::start(&mut shell(&init, &script));
        assert!(Command::new("kill").args(["-s", name, &running.pid().to_string()]).status().unwrap().success());
        assert_eq!(running.status(), Some(9), "{name}");
    }
}

#[test]
fn orphans_are_reaped_while_the_command_runs() {
    let Some(init) = init() else { return };
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script = format!("(sh -c 'while [ ! -e {} ]; do sleep 0.02; done' &); echo up; exec sleep 100", go.display());
    let (mut running, _output) = Running::start(&mut shell(&init, &script));
    wait_for_children(running.pid(), 2);
    std::fs::write(&go, "").unwrap();
    wait_for_children(running.pid(), 1);
    send(running.pid(), 15);
    assert_eq!(running.status(), Some(143));
}

#[test]
fn as_process_1_it_does_the_same() {
    let Some(init) = init() else { return };
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "real tests are required: not root");
        eprintln!("SKIPPED: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let namespace = |init: Option<&Path>, script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--"]);
        if let Some(init) = init {
            command.arg(init).arg("--");
        }
        command.args(["sh", "-c", script]);
        let (running, output) = Running::start(&mut command);
        let first = children(running.pid());
        assert_eq!(first.len(), 1);
        (running, output, first[0])
    };
    let script = format!("(sh -c 'while [ ! -e {} ]; do sleep 0.02; done' &); echo up; echo $$; exec sleep 100", go.display());
    let (mut running, mut output, pid) = namespace(Some(&init), &script);
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_ne!(line, "1\n", "the command must not be process 1");
    wait_for_children(pid, 2);
    // What the program is for: the same without it keeps its zombie and does not heed SIGTERM.
    let (mut bare, _output, bare_pid) = namespace(None, &script);
    wait_for_children(bare_pid, 1);
    // A shell reaps what ends before it has become the command.
    let begin = Instant::now();
    while std::fs::read_to_string(format!("/proc/{bare_pid}/comm")).unwrap() != "sleep\n" {
        assert!(begin.elapsed() < Duration::from_secs(60), "the shell does not become the command");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::write(&go, "").unwrap();
    wait_for_children(pid, 1);
    send(bare_pid, 15);
    send(pid, 15);
    assert_eq!(running.status(), Some(143));
    assert_eq!(children(bare_pid).len(), 1);
    assert!(bare.0.try_wait().unwrap().is_none());
}

#[test]
fn what_is_typed_on_a_terminal_reaches_the_command_once() {
    let Some(init) = init() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (seen, go) = (dir.path().join("seen"), dir.path().join("go"));
    let script = format!(
        "trap \"echo int >> {}\" INT; read line; echo up; echo line=$line; while [ ! -e {} ]; do sleep 0.02; done; exit 3",
        seen.display(),
        go.display()
    );
    let line = format!("stty -echo; exec {} -- sh -c '{script}'", init.display());
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::piped());
    let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut input = running.0.stdin.take().unwrap();
    let mut output = BufReader::new(running.0.stdout.take().unwrap());
    input.write_all(b"hello\n").unwrap();
    let mut text = String::new();
    while !text.contains("line=hello") {
        assert_ne!(output.read_line(&mut text).unwrap(), 0, "{text}");
    }
    input.write_all(b"\x03").unwrap();
    let begin = Instant::now();
    while !seen.exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing arrived");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100)); // for a second one, which must not come
    std::fs::write(&go, "").unwrap();
    assert_eq!(running.status(), Some(3));
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "int\n");
    let _ = output.read_to_string(&mut text);
}
