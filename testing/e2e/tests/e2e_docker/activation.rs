//! Sockets that systemd opens for skepd, as systemd-socket-activate does it.

use crate::support::{SOON, has_client, ok, request_at};
use anyhow::{Context as _, Result, ensure};
use skep_kit::{Host, Lab, LabOptions, binary, eventually, need_root};
use std::fs::File;
use std::process::{Child, Command, Stdio};

/// skepd behind `starter`, which gives it its sockets.
struct Activated {
    child: Child,
    log: std::path::PathBuf,
}

impl Activated {
    fn start(on: &Host, starter: &[&str], name: &str) -> Result<Self> {
        let log = on.dir().join(format!("{name}.log"));
        let out = File::create(&log)?;
        let mut command: Command = on.host_command(starter[0]);
        command.args(&starter[1..]).arg(binary("skepd")?);
        command.arg("--data-dir").arg(on.data_dir()).arg("--run-dir").arg(on.run_dir()).arg("--docker-socket").arg("off");
        command.arg("--containerd").arg(on.containerd_socket()).arg("--cgroup-parent").arg(format!("/{}", on.cgroup()));
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Self { child: command.spawn()?, log })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, and what it said.
    fn ended(&mut self) -> Result<(bool, String)> {
        let status = eventually(SOON, "skepd ends", || self.child.try_wait()?.context("it goes on"))?;
        Ok((status.success(), self.log()))
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_socket_of_systemd_is_served_and_a_wrong_one_is_refused() -> Result<()> {
    let test = "socket activation";
    if !need_root(test) || !has_client(test) {
        return Ok(());
    }
    if Command::new("systemd-socket-activate").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED: {test}: needs systemd-socket-activate");
        return Ok(());
    }
    let lab = Lab::new(LabOptions::default())?;
    std::fs::create_dir_all(lab.run_dir())?;
    // Where the client of the other tests looks; skepd itself opens none here.
    let path = lab.run_dir().join("docker.sock").to_string_lossy().into_owned();
    let activate = |more: &[&'static str], listen: &str| -> Vec<String> {
        ["systemd-socket-activate", "--listen", listen].iter().chain(more).map(|word| (*word).to_owned()).collect()
    };
    let start = |starter: &[String], name: &str| {
        let words: Vec<&str> = starter.iter().map(String::as_str).collect();
        Activated::start(&lab, &words, name)
    };

    let good = start(&activate(&["--fdname=docker"], &path), "good")?;
    eventually(SOON, "the socket is there", || Ok(std::fs::metadata(&path)?))?;
    let version = ok(&lab, &["version", "--format", "{{.Server.Version}}"]).with_context(|| good.log())?;
    ensure!(!version.trim().is_empty());
    ensure!(good.log().contains("sockets of the service manager"), "{}", good.log());
    ensure!(request_at(&path, "GET", "/info", None)?.0 == 200);
    drop(good);

    // An unknown name is said, and does no harm.
    let _ = std::fs::remove_file(&path);
    let unknown = start(&activate(&["--fdname=dokcer"], &path), "unknown")?;
    eventually(SOON, "the socket is there", || Ok(std::fs::metadata(&path)?))?;
    let _waking = std::os::unix::net::UnixStream::connect(&path)?;
    eventually(SOON, "the name is said", || {
        ensure!(unknown.log().contains("dokcer") && unknown.log().contains("FileDescriptorName="), "{}", unknown.log());
        Ok(())
    })?;
    drop(unknown);

    // TCP under the name of the Unix socket would be the API for everybody.
    let _ = std::fs::remove_file(&path);
    let mut tcp = start(&activate(&["--fdname=docker"], "127.0.0.1:2399"), "tcp")?;
    eventually(SOON, "the port is open", || {
        lab.host_command("curl").args(["-s", "--max-time", "1", "http://127.0.0.1:2399/"]).output()?;
        ensure!(tcp.log().contains("cannot be used as a Unix listener"), "{}", tcp.log());
        Ok(())
    })?;
    let (success, log) = tcp.ended()?;
    ensure!(!success && log.contains("\"docker\"") && log.contains("ListenStream="), "{log}");

    // The same port under its own name speaks TLS and nothing else.
    let mut tls = start(&activate(&["--fdname=docker-tls"], "127.0.0.1:2398"), "tls")?;
    eventually(SOON, "the port is served", || {
        let said = lab.host_command("curl").args(["-s", "--max-time", "5", "http://127.0.0.1:2398/info"]).output()?;
        ensure!(tls.log().contains("connection refused") && !said.status.success() && said.stdout.is_empty(), "{said:?} {}", tls.log());
        Ok(())
    })?;
    ensure!(tls.child.try_wait()?.is_none(), "{}", tls.log());
    drop(tls);

    // A file, and a connection instead of a listener.
    let pass = "LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=docker exec \"$@\"";
    for (name, open) in [("file", "exec 3</etc/hostname"), ("closed", "exec 3<&-")] {
        let script = format!("{open}; export LISTEN_FDS LISTEN_PID LISTEN_FDNAMES; {pass}");
        let mut wrong = Activated::start(&lab, &["sh", "-c", &script, "sh"], name)?;
        let (success, log) = wrong.ended().with_context(|| wrong.log())?;
        ensure!(!success && log.contains("\"docker\""), "{name}: {log}");
    }
    Ok(())
}
