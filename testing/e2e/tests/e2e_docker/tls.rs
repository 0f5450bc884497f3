//! The Docker API on TCP: the genuine client by mutual TLS, and everybody who is not let in.

use crate::box_image::{self, Extra};
use crate::support::{SOON, client, has_client, ok};
use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use skep_kit::{Cluster, Output, Size, eventually, need_root, run};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PORT: u16 = 2376;

/// Another machine, with what a workstation has.
struct Workstation<'a> {
    cluster: &'a Cluster,
    host: String,
}

impl Workstation<'_> {
    fn netns(&self) -> String {
        format!("--net=/run/netns/{}", self.cluster.client_namespace())
    }

    /// The genuine client with these files.
    fn docker(&self, host: &str, certs: &Path, input: &[u8], arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args([&self.netns(), "timeout", "120", &client().context("there was a client")?]).args(arguments);
        command.env("DOCKER_TLS_VERIFY", "1").env("DOCKER_CERT_PATH", certs).env("DOCKER_HOST", format!("tcp://{host}:{PORT}"));
        command.env("DOCKER_CONFIG", certs.join("config")).env_remove("DOCKER_CONTEXT");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(input)?;
        let output = child.wait_with_output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Output { status: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) })
    }

    /// Status and body of a request, or what curl says.
    fn curl(&self, certificate: &Path, key: &Path, more: &[&str]) -> Result<Output> {
        let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
        let with = ["--cert", &certificate, "--key", &key];
        self.bare_curl(&[&with[..], more, &[&format!("https://{}:{PORT}/_ping", self.host)]].concat())
    }

    fn bare_curl(&self, more: &[&str]) -> Result<Output> {
        let flags = [&self.netns(), "curl", "-sS", "-k", "--max-time", "20", "--noproxy", "*", "-w", "\n%{http_code}"];
        run("nsenter", &[&flags[..], more].concat())
    }

    fn connect(&self) -> Result<TcpStream> {
        let namespace = format!("/run/netns/{}", self.cluster.client_namespace());
        let address = format!("{}:{PORT}", self.host);
        std::thread::scope(|scope| {
            let dial = || {
                setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
                Ok(TcpStream::connect(&address)?)
            };
            scope.spawn(dial).join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
        })
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A CA of somebody else, and what it signs: a certificate that says what a client's or a manager's would say.
fn foreign(dir: &Path, subject: &str) -> Result<(PathBuf, PathBuf)> {
    let at = |name: &str| path(&dir.join(name));
    let openssl = |arguments: &[&str]| run("openssl", arguments)?.success();
    let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let (ca_key, ca, key, csr, cert) = (at("x-ca.key"), at("x-ca.pem"), at("x.key"), at("x.csr"), at("x.pem"));
    openssl(&[&["req", "-x509", "-days", "9", "-subj", "/CN=swarm-ca", "-keyout", &ca_key, "-out", &ca][..], &ec].concat())?;
    openssl(&[&["req", "-subj", subject, "-keyout", &key, "-out", &csr][..], &ec].concat())?;
    openssl(&["x509", "-req", "-days", "9", "-in", &csr, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-out", &cert])?;
    Ok((cert.into(), key.into()))
}

#[test]
fn the_client_works_by_mutual_tls_and_nobody_else_does() -> Result<()> {
    let test = "the Docker API on TCP";
    if !need_root(test) || !has_client(test) {
        return Ok(());
    }
    let mut cluster = Cluster::formed(Size { managers: 1, workers: 1 })?;
    let host = cluster.address(0);
    cluster[0].kill_skepd();
    cluster[0].set_flags(&["--docker-tls-listen", &format!("0.0.0.0:{PORT}"), "--docker-tls-name", "box.example"]);
    cluster[0].start_skepd()?;
    cluster.wait_leader(SOON)?;
    box_image::load_as(&cluster[0], &["box:1"], &["sh"], Extra::default())?;
    let certs = cluster[0].dir().join("ann");
    let made = |name: &str, dir: &Path| cluster[0].ctl(&["cluster", "client-cert", name, "--out", &path(dir)]);
    let told = made("ann", &certs)?.success()?;
    ensure!(told.contains("DOCKER_CERT_PATH="), "{told}");
    let again = made("ann", &certs)?;
    ensure!(again.status != 0 && again.stderr.contains("is there already"), "{again:?}");
    let long = cluster[0].ctl(&["cluster", "client-cert", "ben", "--expires", "9000h"])?;
    ensure!(long.status != 0 && long.stderr.contains("366 days"), "{long:?}");

    let station = Workstation { cluster: &cluster, host: host.clone() };
    eventually(SOON, "the client is answered", || station.docker(&host, &certs, b"", &["version"])?.success())?;
    let listed = station.docker(&host, &certs, b"", &["node", "ls", "-q"])?.success()?;
    ensure!(listed.lines().count() == 2, "{listed}");
    // Streams both ways, and the end of one of them.
    let echoed = station.docker(&host, &certs, b"one\ntwo", &["run", "--rm", "-i", "box:1", "cat"])?.success()?;
    ensure!(echoed == "one\ntwo", "{echoed:?}");

    let (cert, key) = (certs.join("cert.pem"), certs.join("key.pem"));
    let answer = |output: Output| -> (String, String) { (output.stdout.lines().last().unwrap_or_default().to_owned(), output.stdout) };
    let status = |more: &[&str]| station.curl(&cert, &key, more).map(answer);
    ensure!(status(&[])?.0 == "200");
    ensure!(status(&["-H", "Host: box.example"])?.0 == "200");
    for (headers, words) in [("Host: evil.example", "not called"), ("Origin: https://evil.example", "web page")] {
        let (code, body) = status(&["-H", headers])?;
        ensure!(code == "403" && body.contains(words), "{headers}: {body}");
    }
    ensure!(status(&["-H", "Host:"])?.0 == "400", "no Host");

    // Nodes: a manager's certificate is good, a worker's is not.
    let identity = |host: usize, file: &str| cluster[host].data_dir().join("identity").join(file);
    let as_node = |host: usize| station.curl(&identity(host, "swarm-node.crt"), &identity(host, "swarm-node.key"), &[]).map(answer);
    ensure!(as_node(0)?.0 == "200");
    let (code, body) = as_node(1)?;
    ensure!(code == "403" && body.contains("is a worker's"), "{body}");

    // Strangers do not get as far as HTTP.
    let info: String = ok(&cluster[0], &["info", "--format", "{{.Swarm.Cluster.ID}}"])?.trim().to_owned();
    let nobody = |output: Output, who: &str| {
        ensure!(output.status != 0 && output.stdout.trim() == "000", "{who}: {output:?}");
        Ok(())
    };
    nobody(station.bare_curl(&[&format!("https://{host}:{PORT}/_ping")])?, "no certificate")?;
    nobody(station.bare_curl(&[&format!("http://{host}:{PORT}/_ping")])?, "plain HTTP")?;
    for unit in ["skep-client/CN=client:ann", "swarm-manager/CN=manager"] {
        let (cert, key) = foreign(cluster[0].dir(), &format!("/O={info}/OU={unit}"))?;
        nobody(station.curl(&cert, &key, &[])?, unit)?;
    }
    // A client's certificate is good for nothing else: not on the cluster port, by either name.
    for name in ["swarm-manager", "other"] {
        let resolve = format!("{name}:2377:{host}");
        let with = ["--http2", "--cert", &path(&cert), "--key", &path(&key), "--resolve", &resolve].map(str::to_owned);
        let url = format!("https://{name}:2377/docker.swarmkit.v1.CA/GetRootCACertificate");
        let arguments: Vec<&str> = with.iter().map(String::as_str).chain([url.as_str()]).collect();
        nobody(station.bare_curl(&arguments)?, name)?;
    }

    // Junk and silence end by themselves, and hold up nobody.
    let mut junk = station.connect()?;
    junk.write_all(&[0x16; 4096])?;
    junk.set_read_timeout(Some(SOON))?;
    let mut rest = Vec::new();
    let _ = junk.read_to_end(&mut rest);
    ensure!(!rest.starts_with(b"HTTP"), "{rest:?}");
    let began = Instant::now();
    let mut silent = (0..300).map(|_| station.connect()).collect::<Result<Vec<_>>>()?;
    eventually(SOON, "others are served", || {
        ensure!(status(&[])?.0 == "200");
        Ok(())
    })?;
    let first = &mut silent[0];
    first.set_read_timeout(Some(SOON))?;
    let _ = first.read_to_end(&mut rest);
    ensure!(began.elapsed() < Duration::from_secs(60), "a silent connection lasted {:?}", began.elapsed());

    // Another root: what the old one signed ends, streams included, and the listener goes on with the new one.
    let mut following = Command::new("nsenter");
    following.args([&station.netns(), &client().context("there was a client")?, "events"]).stdout(Stdio::null()).stderr(Stdio::null());
    following.env("DOCKER_TLS_VERIFY", "1").env("DOCKER_CERT_PATH", &certs).env("DOCKER_HOST", format!("tcp://{host}:{PORT}"));
    let mut following = following.spawn()?;
    cluster[0].ctl(&["cluster", "ca", "--rotate", "--quiet"])?.success()?;
    let ended = eventually(SOON, "a stream under the old root ends", || following.try_wait()?.context("it goes on"));
    let _ = following.kill();
    let _ = following.wait();
    ended?;
    let renewed = cluster[0].dir().join("ann2");
    eventually(SOON, "a new certificate works", || {
        let _ = std::fs::remove_dir_all(&renewed);
        made("ann", &renewed)?.success()?;
        station.docker(&host, &renewed, b"", &["version"])?.success()
    })?;
    nobody(station.curl(&cert, &key, &[])?, "a certificate of the old root")?;
    let old = station.docker(&host, &certs, b"", &["version"])?;
    ensure!(old.status != 0 && old.stderr.contains("certificate"), "{old:?}");
    Ok(())
}
