//! Disks that are full or lie, and clients that should not be there.

use anyhow::{Context, Result, ensure};
use skep_kit::{Lab, LabOptions, eventually, need_root, run};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_full_disk_refuses_changes_in_words_and_recovers() -> Result<()> {
    if !need_root("full disk") {
        return Ok(());
    }
    let mut lab = Lab::new(LabOptions::default())?;
    fs::create_dir(lab.data_dir())?;
    let data = lab.data_dir();
    run("mount", &["-t", "tmpfs", "-o", "size=96m", "tmpfs", data.to_str().context("UTF-8")?])?.success()?;
    lab.start_skepd()?;
    lab.ctl(&["cluster", "init", "--advertise-addr", Lab::HOST])?.success()?;
    lab.ctl(&["image", "load", "-q", "-i", skep_kit::whoami_image()?.to_str().context("UTF-8")?])?.success()?;
    lab.ctl(&["service", "create", "-q", "--name", "web", "--publish", "8080:8080", "whoami"])?.success()?;

    let ballast = data.join("ballast");
    let mut file = File::create(&ballast)?;
    while file.write_all(&[1; 1 << 16]).is_ok() {}
    drop(file);
    // What was set aside before the disk filled up is used first; then changes are refused, and nothing that was accepted is lost.
    let mut accepted = Vec::new();
    let padding = format!("padding={}", "x".repeat(60_000));
    let refusal = (0..2000).find_map(|number| {
        let name = format!("s{number}");
        let flags = ["service", "create", "-d", "--name", &name, "--replicas", "0", "--label", &padding, "whoami"];
        match lab.ctl(&flags) {
            Ok(output) if output.status == 0 => {
                accepted.push(name);
                None
            }
            Ok(output) => Some(output.stderr),
            Err(error) => Some(format!("{error:#}")),
        }
    });
    let refusal = refusal.context("a full disk took 2000 services")?;
    ensure!(refusal.contains("space") || refusal.contains("disk"), "{refusal}");
    ensure!(lab.curl(&format!("http://{}:8080/", Lab::HOST)).is_ok(), "the task stopped answering");
    lab.ctl(&["service", "ls"])?.success().context("reads stopped")?;

    fs::remove_file(&ballast)?;
    eventually(SOON, "changes are taken again", || {
        lab.ctl(&["service", "create", "-d", "--name", "after", "--replicas", "0", "whoami"])?.success()
    })?;
    accepted.push("after".into());
    lab.kill_skepd();
    lab.start_skepd()?;
    let listed = eventually(SOON, "a leader", || lab.ctl(&["service", "ls", "--format", "{{.Name}}"])?.success())?;
    for name in &accepted {
        ensure!(listed.lines().any(|line| line == name), "{name} was accepted and is lost");
    }
    Ok(())
}

/// The files of the raft directory that hold cluster state, the largest first.
fn state_files(lab: &Lab) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![lab.data_dir().join("raft")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0)));
    Ok(found)
}

#[test]
fn a_damaged_log_is_refused_with_its_name_and_a_cure() -> Result<()> {
    if !need_root("damaged log") {
        return Ok(());
    }
    let mut lab = Lab::swarm(LabOptions::default())?;
    for number in 0..20 {
        lab.ctl(&["service", "create", "-d", "--name", &format!("s{number}"), "--replicas", "0", "whoami"])?.success()?;
    }
    lab.kill_skepd();
    let files = state_files(&lab)?;
    // A byte in the middle of what was acknowledged long ago.
    let log = files
        .iter()
        .find(|path| fs::read(path).is_ok_and(|bytes| bytes.iter().filter(|byte| **byte != 0).count() > 4000))
        .context("no log file")?;
    let mut file = File::options().read(true).write(true).open(log)?;
    file.seek(SeekFrom::Start(2000))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(2000))?;
    file.write_all(&[byte[0] ^ 0x10])?;
    drop(file);

    lab.spawn_skepd()?;
    ensure!(lab.skepd_died(SOON), "skepd started on a damaged log");
    let said = lab.log_tail();
    let name = log.file_name().context("a name")?.to_string_lossy().into_owned();
    ensure!(said.contains(&name), "the file {name} is not named: {said}");
    ensure!(said.contains("backup") || said.contains("restore") || said.contains("join"), "no cure is named: {said}");

    let mut file = File::options().write(true).open(log)?;
    file.seek(SeekFrom::Start(2000))?;
    file.write_all(&byte)?;
    drop(file);
    lab.start_skepd()?;
    eventually(SOON, "all is back with the byte", || {
        ensure!(lab.ctl(&["service", "ls", "-q"])?.success()?.lines().count() == 20);
        Ok(())
    })
}

#[test]
fn the_cluster_port_serves_nobody_without_a_certificate_of_the_cluster() -> Result<()> {
    if !need_root("cluster port") {
        return Ok(());
    }
    let lab = Lab::swarm(LabOptions::default())?;
    let dir = lab.dir().join("foreign");
    fs::create_dir(&dir)?;
    let (key, certificate) = (dir.join("k.pem"), dir.join("c.pem"));
    let (key, certificate) = (key.to_string_lossy(), certificate.to_string_lossy());
    let subject = "/CN=0000000000000000000000000/OU=swarm-manager/O=0000000000000000000000000";
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &certificate,
            "-days",
            "1",
            "-subj",
            subject,
        ],
    )?
    .success()?;
    let net = format!("--net=/run/netns/{}", lab.client_namespace());
    let ask = |extra: &[&str]| -> Result<String> {
        let url = format!("https://{}:2377/docker.swarmkit.v1.Control/ListServices", Lab::HOST);
        let body = format!("@{}", lab.dir().join("empty").display());
        fs::write(lab.dir().join("empty"), [0, 0, 0, 0, 0])?;
        let mut arguments = vec![
            net.as_str(),
            "curl",
            "-sS",
            "-k",
            "--http2",
            "--max-time",
            "5",
            "-D",
            "-",
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            "--data-binary",
            &body,
        ];
        arguments.extend(extra);
        arguments.push(&url);
        let output = run("nsenter", &arguments)?;
        Ok(format!("status {} {}{}", output.status, output.stdout, output.stderr))
    };
    // The server may answer before it has read the request, which curl does not always forgive: the answer is what counts.
    let answer = |extra: &[&str]| {
        eventually(SOON, "an answer", || {
            let answer = ask(extra)?;
            ensure!(answer.contains("grpc-status"), "{answer}");
            Ok(answer)
        })
    };
    let anonymous = answer(&[])?;
    ensure!(anonymous.contains("grpc-status: 7"), "without a certificate: {anonymous}");
    let foreign = ask(&["--cert", &certificate, "--key", &key])?;
    // With TLS 1.3 the client sends its request before it learns of the refusal: what it sees of it is an alert or a closed connection.
    ensure!(!foreign.contains("grpc-status") && !foreign.starts_with("status 0 "), "with a foreign certificate: {foreign}");
    let plain = run("nsenter", &[&net, "curl", "-sS", "--max-time", "3", &format!("http://{}:2377/", Lab::HOST)])?;
    ensure!(plain.status != 0, "plain HTTP got an answer: {plain:?}");
    // With the node's own certificate the same call is answered.
    let identity = lab.data_dir().join("identity");
    let (own, own_key) = (identity.join("swarm-node.crt"), identity.join("swarm-node.key"));
    let own = answer(&["--cert", &own.to_string_lossy(), "--key", &own_key.to_string_lossy()])?;
    ensure!(own.contains("grpc-status: 0"), "with the node's certificate: {own}");
    Ok(())
}
