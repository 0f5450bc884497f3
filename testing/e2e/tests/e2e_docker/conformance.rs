//! The same command lines to us and to Debian's dockerd 20.10, with this machine's client and with 20.10's: conformance.txt.

#[path = "conformance/answers.rs"]
mod answers; // what was printed, without ids, times and names of hosts
#[path = "conformance/list.rs"]
mod list; // the text, read

use crate::support::{SOON, client};
use answers::{Answer, Comparison};
use anyhow::{Context as _, Result, bail, ensure};
use list::{Case, Line, Word};
use skep_kit::{Dockerd, Host, Output, Scenario, need_dockerd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const STACK: &str = r#"
version: "3.8"
services:
  web:
    image: box:1
    command: ["sleep", "100000"]
    stop_grace_period: 0s
    environment: {A: b}
    labels: {in: side}
    ports: ["28080:80"]
    networks: {front: {}, back: {aliases: [site]}}
    secrets: [key]
    configs: [{source: motd, target: /motd, mode: 0440}]
    volumes: ["data:/data", {type: tmpfs, target: /t}]
    healthcheck: {test: ["CMD", "true"], interval: 5s}
    deploy:
      labels: {tier: front}
      update_config: {parallelism: 2, order: start-first}
      restart_policy: {condition: on-failure, max_attempts: 3}
      resources: {limits: {memory: 64M}, reservations: {cpus: "0.01"}}
      placement: {constraints: ["node.role==manager"], preferences: [{spread: node.labels.rack}]}
  all:
    image: box:1
    command: ["sleep", "100000"]
    stop_grace_period: 0s
    networks: [back]
    deploy: {mode: global, endpoint_mode: dnsrr}
networks: {front: {}, back: {attachable: true, labels: {a: b}}}
secrets: {key: {file: ./text}}
configs: {motd: {file: ./other}}
volumes: {data: {}}
"#;

/// Removes everything but what is always there, in the order that needs no second try, and waits until it is gone.
const CLEAN: &str = r#"
docker service ls -q | xargs -r docker service rm
for i in $(seq 900); do [ -z "$(docker ps -q)" ] && break; sleep 0.1; done
docker ps -aq | xargs -r docker rm -f
for kind in secret config; do docker $kind ls -q | xargs -r docker $kind rm; done
for i in $(seq 300); do
  left=$(docker network ls --filter type=custom --filter scope=swarm --format '{{.Name}}' | grep -v '^ingress$') || break
  docker network rm $left; sleep 0.1
done
docker volume ls -q | xargs -r docker volume rm -f
"#;

const CREATE: &str = "service create -d --no-resolve-image";
const INSPECT: &str = "docker service inspect --format '{{json .Spec}} {{json .PreviousSpec}}' $(docker service ls -q)";

/// One of the two daemons, seen through one of the two clients.
struct Side {
    name: &'static str,
    environment: Vec<(&'static str, String)>,
    host_name: String,
}

impl Side {
    fn new(name: &'static str, socket: &str, programs: &Path, dir: &Path) -> Result<Self> {
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let environment = vec![
            ("DOCKER_HOST", format!("unix://{socket}")),
            // The newest that both speak: both answer as of the same version.
            ("DOCKER_API_VERSION", "1.41".into()),
            ("DOCKER_CONFIG", dir.join(format!("config-{name}")).to_string_lossy().into_owned()),
            ("PATH", path),
            ("F", dir.to_string_lossy().into_owned()),
            ("T", dir.join(format!("time-{name}")).to_string_lossy().into_owned()),
            ("S", CREATE.into()),
            ("R", format!("{CREATE} --replicas 0")),
            ("U", "service update -d --no-resolve-image".into()),
        ];
        let mut side = Self { name, environment, host_name: String::new() };
        side.host_name = side.shell("docker info --format '{{.Name}}'")?.success()?.trim().to_owned();
        let node = side.shell("docker info --format '{{.Swarm.NodeID}}'")?.success()?.trim().to_owned();
        ensure!(node.len() == 25, "{name} is in no swarm");
        side.environment.push(("N", node));
        Ok(side)
    }

    fn shell(&self, script: &str) -> Result<Output> {
        let mut command = Command::new("timeout");
        command
            .args(["300", "sh", "-c", script])
            .env_remove("DOCKER_CONTEXT")
            .envs(self.environment.iter().map(|(key, value)| (key, value)));
        let output = command.stdin(Stdio::null()).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Output { stdout: text(&output.stdout), stderr: text(&output.stderr), status: output.status.code().unwrap_or(255) })
    }

    fn docker(&self, line: &str) -> Result<Output> {
        match line.strip_prefix("$ ") {
            Some(script) => self.shell(script),
            None => self.shell(&format!("docker {line}")),
        }
    }

    /// A service with these flags, changed if there is more to say, as it is inspected or as it was refused.
    fn service(&self, flags: &str, more: Option<&str>) -> Result<Output> {
        let given = |flag: &str| flags.split(' ').any(|word| word == flag);
        let name = if given("--name") { "" } else { "--name web" };
        let replicas = if given("--mode") || given("--replicas") { "" } else { "--replicas 0" };
        let mut made = self.docker(&format!("$S -q {name} {replicas} {flags} box:1 sleep 100000"))?;
        if let Some(more) = more.filter(|_| made.status == 0) {
            // The daemon writes to a new service as well, and another version is refused: people ask again.
            for _ in 0..50 {
                made = self.docker(&format!("$U -q {more} web"))?;
                if !made.stderr.contains("update out of sequence") {
                    break;
                }
            }
        }
        let seen = if made.status == 0 { self.shell(INSPECT)? } else { made };
        self.shell("docker service ls -q | xargs -r docker service rm")?;
        Ok(seen)
    }

    fn until(&self, text: &str, line: &str) -> Result<Output> {
        let end = Instant::now() + 2 * SOON;
        loop {
            let output = self.docker(line)?;
            if output.stdout.contains(text) {
                return Ok(output);
            }
            ensure!(Instant::now() < end, "{}: {line}: no {text:?} in {output:?}", self.name);
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }

    fn answer(&self, line: &Line) -> Result<Answer> {
        let output = match &line.word {
            Word::Create => self.service(&line.text, None)?,
            Word::Update { more } => self.service(&line.text, Some(more))?,
            Word::Until { text } => self.until(text, &line.text)?,
            Word::Do => {
                let output = self.docker(&line.text)?;
                ensure!(output.status == 0, "{}: {}: {output:?}", self.name, line.text);
                output
            }
            Word::Same | Word::Refused | Word::Words => self.docker(&line.text)?,
        };
        Ok(Answer::new(&output, &self.host_name))
    }

    /// What it answers to each line of each case; a line that cannot go on ends its case.
    fn play(&self, cases: &[Case]) -> Result<Vec<Vec<Result<Answer>>>> {
        let mut is_clean = false;
        let mut all = Vec::new();
        for case in cases {
            // Cases of one line remove their service themselves.
            if !is_clean || !case.is_of_service() {
                self.shell(CLEAN)?;
            }
            is_clean = case.is_of_service();
            let mut answers = Vec::new();
            for line in &case.lines {
                answers.push(self.answer(line));
                if answers.last().is_some_and(Result::is_err) {
                    break;
                }
            }
            all.push(answers);
        }
        self.shell(CLEAN)?;
        Ok(all)
    }
}

/// Lines that are not as they should be, in words.
fn compare(cases: &[Case], ours: Vec<Vec<Result<Answer>>>, theirs: Vec<Vec<Result<Answer>>>) -> (usize, Vec<String>) {
    let (mut count, mut wrong) = (0, Vec::new());
    for ((case, ours), theirs) in cases.iter().zip(ours).zip(theirs) {
        for ((line, here), there) in case.lines.iter().zip(ours).zip(theirs) {
            count += 1;
            let said = match (here, there) {
                (Ok(here), Ok(there)) => match (line.compare(&here, &there), &line.differs) {
                    (Comparison::Same, None) | (Comparison::Different(_), Some(_)) => continue,
                    (Comparison::Same, Some(reason)) => format!("is the same now, though it was to differ: {reason}"),
                    (Comparison::Different(how), None) => how,
                },
                (here, there) => {
                    [here.err(), there.err()].into_iter().flatten().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; ")
                }
            };
            wrong.push(format!("{}: {line}\n    {said}", case.name));
        }
    }
    (count, wrong)
}

fn files(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, text) in [("env", "A=1\nB=2\n"), ("text", "text\n"), ("other", "other\n"), ("stack.yml", STACK)] {
        std::fs::write(dir.join(name), text)?;
    }
    Ok(())
}

/// A directory in which `docker` is this program.
fn programs(dir: &Path, name: &str, program: &str) -> Result<PathBuf> {
    let found = skep_kit::run("which", &[program])?.success().with_context(|| format!("there is no {program}"))?;
    let programs = dir.join(name);
    std::fs::create_dir_all(&programs)?;
    std::os::unix::fs::symlink(std::fs::canonicalize(found.trim())?, programs.join("docker"))?;
    Ok(programs)
}

fn both(host: &Host, peer: &Dockerd, cases: &[Case], programs: &Path, dir: &Path) -> Result<(usize, Vec<String>)> {
    let ours = Side::new("skepd", &host.run_dir().join("docker.sock").to_string_lossy(), programs, dir)?;
    let theirs = Side::new("dockerd", peer.socket(), programs, dir)?;
    let (here, there) = std::thread::scope(|scope| {
        let there = scope.spawn(|| theirs.play(cases));
        let here = ours.play(cases);
        (here, there.join().expect("no panic in a thread"))
    });
    Ok(compare(cases, here?, there?))
}

/// What one of the two saved is the same image for the other.
fn exchange(host: &Host, peer: &Dockerd) -> Result<()> {
    let id = |text: String| text.trim().to_owned();
    let wanted = id(crate::support::ok(host, &["image", "inspect", "--format", "{{.Id}}", "box:1"])?);
    let file = |name: &str| host.dir().join(name).to_string_lossy().into_owned();
    crate::support::ok(host, &["tag", "box:1", "ours/box:1"])?;
    crate::support::ok(host, &["save", "-o", &file("ours.tar"), "ours/box:1"])?;
    peer.docker(&["load", "-i", &file("ours.tar")])?.success()?;
    let there = id(peer.docker(&["image", "inspect", "--format", "{{.Id}}", "ours/box:1"])?.success()?);
    ensure!(there == wanted, "ours is {there} for dockerd, not {wanted}");
    peer.docker(&["tag", "box:1", "theirs/box:1"])?.success()?;
    peer.docker(&["save", "-o", &file("theirs.tar"), "theirs/box:1"])?.success()?;
    crate::support::ok(host, &["load", "-i", &file("theirs.tar")])?;
    let here = id(crate::support::ok(host, &["image", "inspect", "--format", "{{.Id}}", "theirs/box:1"])?);
    ensure!(here == wanted, "dockerd's is {here} for us, not {wanted}");
    crate::support::ok(host, &["rmi", "ours/box:1", "theirs/box:1"])?;
    peer.docker(&["rmi", "ours/box:1", "theirs/box:1"])?.success().map(|_| ())
}

#[test]
fn the_whole_list_is_answered_as_by_a_genuine_dockerd() -> Result<()> {
    let name = "the list of command lines, beside dockerd";
    Scenario::new(name, 1, 0).unformed().long().run(|cluster| {
        if !need_dockerd(name) {
            return Ok(());
        }
        let peer = cluster.add_dockerd()?;
        let host = &cluster[0];
        peer.docker(&["swarm", "init", "--advertise-addr", peer.address()])?.success()?;
        crate::support::ok(host, &["swarm", "init", "--advertise-addr", &cluster.address(0)])?;
        crate::box_image::load_as(host, &["box:1"], &["sh"], crate::box_image::Extra::default())?;
        peer.docker(&["load", "-q", "-i", &host.dir().join("box/box.tar").to_string_lossy()])?.success()?;
        exchange(host, &peer)?;
        let dir = host.dir().join("list");
        files(&dir)?;
        let mut cases = list::read(include_str!("conformance.txt"))?;
        if let Ok(parts) = std::env::var("SKEP_CASES") {
            cases.retain(|case| parts.split(',').any(|part| case.name.contains(part)));
            ensure!(!cases.is_empty(), "SKEP_CASES={parts}: no case is called so");
        }
        let machine = programs(&dir, "machine", &client().context("there is no docker command line")?)?;
        let old = programs(&dir, "old", &peer.client()?.to_string_lossy())?;
        let mut failed = Vec::new();
        for (client, programs) in [("this machine's", machine), ("20.10's", old)] {
            let began = Instant::now();
            let (count, wrong) = both(host, &peer, &cases, &programs, &dir)?;
            let seconds = began.elapsed().as_secs();
            eprintln!("{count} command lines with {client} client, {} not as they should be, {seconds} s", wrong.len());
            failed.extend(wrong.into_iter().map(|what| format!("with {client} client: {what}")));
        }
        if !failed.is_empty() {
            bail!("{} command lines:\n{}", failed.len(), failed.join("\n"));
        }
        Ok(())
    })
}
