//! The page `docs/swarm-tutorial.md`, line by line, on three hosts: each command is run where the page says, and prints what stands below it.

use crate::box_image::{Extra, load_as};
use crate::support::{SOON, command, has_client};
use anyhow::{Context as _, Result, bail, ensure};
use skep_kit::{Cluster, Host, Output, Scenario, binary, eventually};
use std::path::Path;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/swarm-tutorial.md");
/// What the page calls the hosts, and how they are called here.
const NAMES: [(&str, &str); 3] = [("manager1", "m1"), ("worker1", "w1"), ("worker2", "w2")];
/// Stands for anything in an output.
const ANYTHING: char = '…';

/// A command of the page.
#[derive(Debug)]
struct Step {
    host: usize,
    command: String,
    /// Lines, in any order, blanks as one.
    printed: Vec<String>,
}

enum Block {
    Steps(Vec<Step>),
    File { name: String, text: String },
}

fn plain(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn block(kind: &str, lines: &[&str]) -> Result<Block> {
    if kind == "yaml" {
        let name = lines.first().and_then(|line| line.strip_prefix("# ")).context("a file's first line says its name")?;
        return Ok(Block::File { name: name.to_owned(), text: lines.join("\n") });
    }
    let mut steps: Vec<Step> = Vec::new();
    for line in lines {
        let named = line.split_once("$ ").and_then(|(name, command)| {
            let host = NAMES.iter().position(|(page, _)| *page == name)?;
            Some(Step { host, command: command.to_owned(), printed: Vec::new() })
        });
        match (named, steps.last_mut()) {
            (Some(step), _) => steps.push(step),
            (None, Some(step)) => step.printed.push(plain(line)),
            (None, None) => bail!("{line:?} comes before any command"),
        }
    }
    Ok(Block::Steps(steps))
}

fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let mut open: Option<(&str, Vec<&str>)> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some((kind, lines))) => found.push(block(kind, &lines)?),
            (Some(kind), None) => open = Some((kind, Vec::new())),
            (None, Some((kind, mut lines))) => {
                lines.push(line);
                open = Some((kind, lines));
            }
            (None, None) => {}
        }
    }
    Ok(found)
}

/// Whether a line has the pieces between what may be anything, one after the other.
fn is_like(line: &str, wanted: &str) -> bool {
    let mut rest = line;
    wanted.split(ANYTHING).map(str::trim).all(|piece| match rest.find(piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    })
}

fn expected(step: &Step, output: &Output) -> Result<()> {
    let all = format!("{}\n{}", output.stdout, output.stderr);
    let lines: Vec<String> = all.lines().map(plain).collect();
    for wanted in &step.printed {
        ensure!(lines.iter().any(|line| is_like(line, wanted)), "no line like {wanted:?} in\n{all}");
    }
    // What is shown of a failure is all that the reader is told; otherwise a command of the page succeeds.
    let fails = step.printed.iter().any(|line| line.starts_with("Error") || line.contains("no such") || line.contains("can't open"));
    ensure!((output.status != 0) == fails, "exit code {}\n{all}", output.status);
    Ok(())
}

/// Asks and changes nothing, so that it may be asked again until it is as the page has it.
fn only_asks(command: &str) -> bool {
    [" ls", " ps", " inspect", " services", "curl", " exec ", " info", "node rm"].iter().any(|word| command.contains(word))
}

fn perform(on: &Host, dir: &Path, script: &str) -> Result<Output> {
    let client = command(on)?;
    let (program, environment) = client.split_last().context("the client's command")?;
    let mut shell = on.host_command("timeout");
    let arguments: Vec<&str> = environment.iter().map(String::as_str).collect();
    // `docker` in the page is the client that this test found.
    let script = format!("docker() {{ command '{program}' \"$@\"; }}; {script}");
    let output = shell.arg("300").args(arguments).args(["bash", "-o", "pipefail", "-c", &script]).current_dir(dir).output()?;
    Ok(Output {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[test]
fn the_tutorial_page_is_true() -> Result<()> {
    if !has_client("the tutorial") {
        return Ok(());
    }
    Scenario::new("the tutorial page is true", 1, 2).long().unformed().named().run(|hosts| follow(hosts))
}

fn follow(hosts: &Cluster) -> Result<()> {
    let whoami = binary("whoami")?;
    for host in [&hosts[0], &hosts[1], &hosts[2]] {
        load_as(host, &["alpine:latest"], &["sh"], Extra::default())?;
        let programs = [(whoami.as_path(), "/bin/whoami")];
        load_as(host, &["redis:7.4.0", "redis:7.4.1"], &["whoami"], Extra { programs: &programs, ..Extra::default() })?;
        load_as(host, &["nginx:latest"], &["whoami"], Extra { programs: &programs, environment: &["PORT=80"] })?;
    }
    let dir = hosts[0].dir().to_owned();
    let page = std::fs::read_to_string(PAGE).context(PAGE)?;
    let here = |text: &str| NAMES.iter().fold(text.replace("192.0.2.1", &hosts.address(0)), |text, (page, here)| text.replace(page, here));
    let mut token = String::new();
    let mut count = 0;
    for block in blocks(&page)? {
        let steps = match block {
            Block::File { name, text } => {
                std::fs::write(dir.join(name), text)?;
                continue;
            }
            Block::Steps(steps) => steps,
        };
        for mut step in steps {
            count += 1;
            step.printed = step.printed.iter().map(|line| here(line)).collect();
            let script = here(&step.command).replace("SWMTKN-1-…", &token);
            let on = &hosts[step.host];
            let once = || {
                let output = perform(on, &dir, &script)?;
                expected(&step, &output)?;
                Ok(output)
            };
            let output = if only_asks(&script) { eventually(SOON, &step.command, once) } else { once() };
            let output = output.with_context(|| format!("{}$ {}", NAMES[step.host].0, step.command))?;
            if script.contains("join-token -q") {
                token = output.stdout.trim().to_owned();
            }
        }
    }
    ensure!(count > 60, "only {count} commands were found in the page");
    Ok(())
}
