//! `docker stack …`: all of it happens in the client, so that it shows whether the calls behind it are right.

use crate::support::{SOON, docker, inspect, is_old_client, lab, ok};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use skep_kit::{Lab, eventually};
use std::path::Path;

const COMPOSE: &str = r#"
version: "3.8"
services:
  web:
    image: whoami
    ports: ["8080:8080"]
    networks:
      front:
      back: {aliases: [site]}
    environment: {GREETING: "${GREETING:-hello}"}
    secrets: [password]
    configs: [{source: motd, target: /motd, mode: 0440}]
    volumes: ["data:/data"]
    healthcheck: {disable: true}
    stop_grace_period: 2s
    deploy:
      replicas: 2
      labels: {tier: front}
      update_config: {parallelism: 2, monitor: 1s, order: stop-first}
      restart_policy: {condition: any, delay: 1s}
      resources: {limits: {memory: 64M}}
  db:
    image: whoami
    command: sleep
    networks: [back]
    deploy: {endpoint_mode: dnsrr}
networks:
  front:
  back: {attachable: true}
secrets:
  password: {file: ./password}
configs:
  motd: {file: ./motd}
volumes:
  data:
"#;

fn write(dir: &Path, file: &str, text: &str) -> Result<String> {
    let path = dir.join(file);
    std::fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
fn a_stack_is_deployed_changed_and_removed() -> Result<()> {
    let Some(lab) = lab("docker stack")? else { return Ok(()) };
    let dir = lab.dir().join("compose");
    std::fs::create_dir_all(&dir)?;
    write(&dir, "password", "hunter2")?;
    write(&dir, "motd", "good morning")?;
    let file = write(&dir, "stack.yml", COMPOSE)?;
    // 20.10 never waits.
    let wait: &[&str] = if is_old_client() { &[] } else { &["--detach=false"] };
    let deploy = [&["stack", "deploy", "--resolve-image", "never"], wait, &["-c", &file, "shop"]].concat();
    let out = ok(&lab, &deploy)?;
    for words in ["Creating network shop_front", "Creating secret shop_password", "Creating config shop_motd", "Creating service shop_web"]
    {
        ensure!(out.contains(words), "no {words:?} in {out}");
    }
    ensure!(ok(&lab, &["stack", "ls", "--format", "{{.Name}} {{.Services}}"])? == "shop 2\n");
    let services = || ok(&lab, &["stack", "services", "shop", "--format", "{{.Name}} {{.Replicas}} {{.Ports}}"]);
    let wanted = "shop_db 1/1 \nshop_web 2/2 *:8080->8080/tcp\n";
    if is_old_client() {
        eventually(SOON, "the services run", || {
            ensure!(services()? == wanted, "{:?}", services());
            Ok(())
        })?;
    }
    ensure!(services()? == wanted, "{:?}", services());
    let tasks = ok(&lab, &["stack", "ps", "shop", "--filter", "desired-state=running", "--format", "{{.Name}}"])?;
    let mut tasks: Vec<&str> = tasks.lines().collect();
    tasks.sort_unstable();
    ensure!(tasks == ["shop_db.1", "shop_web.1", "shop_web.2"], "{tasks:?}");

    let url = format!("http://{}:8080", Lab::HOST);
    ensure!(eventually(SOON, "it answers", || lab.curl(&format!("{url}/env")))?.contains("GREETING=hello"));
    let web = inspect(&lab, &["service", "inspect", "shop_web"])?;
    for (path, wanted) in [("/run/secrets/password", "0:0 444 hunter2\n"), ("/motd", "0:0 440 good morning\n")] {
        let read = lab.curl(&format!("{url}/file?{path}")).with_context(|| format!("{path}: {}", web["Spec"]["TaskTemplate"]))?;
        ensure!(read == wanted, "{path}: {read}");
    }
    ensure!(web["Spec"]["Labels"]["com.docker.stack.namespace"] == json!("shop"), "{web}");
    ensure!(web["Spec"]["Labels"]["com.docker.stack.image"] == json!("whoami"), "{web}");

    // The same file again: nothing is different, no task is replaced.
    let ids = |lab: &Lab| ok(lab, &["stack", "ps", "shop", "-q", "--no-trunc"]);
    let before = ids(&lab)?;
    let out = ok(&lab, &deploy)?;
    ensure!(out.contains("Updating service shop_web") && !out.contains("Creating"), "{out}");
    ensure!(ids(&lab)? == before, "tasks were replaced by an update that changes nothing");

    // Another environment, and a service less.
    let text = std::fs::read_to_string(&file)?;
    let (head, rest) = text.split_once("  db:\n").context("no db")?;
    let (_, tail) = rest.split_once("networks:\n  front").context("no networks")?;
    std::fs::write(&file, format!("{head}networks:\n  front{tail}").replace("hello", "moin"))?;
    ok(&lab, &[&["stack", "deploy", "--resolve-image", "never", "--prune"], wait, &["-c", &file, "shop"]].concat())?;
    ensure!(ok(&lab, &["stack", "services", "shop", "-q"])?.lines().count() == 1, "the service that went from the file is there");
    eventually(SOON, "the new environment is there", || {
        ensure!(lab.curl(&format!("{url}/env"))?.contains("GREETING=moin"));
        Ok(())
    })?;
    // Contents of a secret do not change.
    write(&dir, "password", "hunter3")?;
    let refused = docker(&lab, &deploy)?;
    ensure!(refused.status != 0 && refused.stderr.contains("only updates to Labels are allowed"), "{refused:?}");

    let out = docker(&lab, &["stack", "rm", "shop"])?;
    ensure!(out.status == 0, "{out:?}");
    ensure!(ok(&lab, &["stack", "ls", "--format", "{{.Name}}"])?.is_empty());
    for kind in ["service", "secret", "config"] {
        ensure!(ok(&lab, &[kind, "ls", "-q"])?.is_empty(), "{kind}s are left");
    }
    let networks = ok(&lab, &["network", "ls", "--filter", "label=com.docker.stack.namespace", "-q"])?;
    ensure!(networks.is_empty(), "networks are left: {networks}");
    let nothing = docker(&lab, &["stack", "ps", "shop"])?;
    ensure!(nothing.status == 1 && nothing.stderr.contains("nothing found in stack: shop"), "{nothing:?}");
    Ok(())
}
