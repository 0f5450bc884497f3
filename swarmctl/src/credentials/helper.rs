//! Programs that keep credentials for docker: `docker-credential-NAME get`, a registry's name in, a JSON object out
//! (`docker/docker-credential-helpers`).

use super::Login;
use crate::failure::Failure;
use serde::Deserialize;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// A helper may ask a person for a passphrase.
const PATIENCE: Duration = Duration::from_secs(300);
/// More than any token in use.
const LONGEST: u64 = 64 * 1024;
/// What helpers print, and fail, when they know nothing of the registry.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name of a secret that is an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks helper `name` for the credentials of `server`; an empty log-in if it has none.
pub(super) async fn ask(name: &str, path: &OsStr, server: &str) -> Result<Login, Failure> {
    let program = format!("docker-credential-{name}");
    let failed =
        |what: String| Failure::failed(format!("no credentials for {server}: {program}, which docker's config file names, {what}"));
    let file = find(&program, path).ok_or_else(|| failed("is not in PATH; install it, or repeat `docker login`".into()))?;
    let answered = tokio::time::timeout(PATIENCE, run(&file, server)).await;
    let answered = answered.map_err(|_| failed(format!("did not answer within {} s", PATIENCE.as_secs())))?;
    let (status, said) = answered.map_err(|error| failed(format!("cannot be run: {error}")))?;
    if said.len() as u64 > LONGEST {
        return Err(failed(format!("answered with more than {LONGEST} bytes")));
    }
    let text = String::from_utf8_lossy(&said);
    if !status.success() {
        let text = text.trim();
        return match text.contains(NOT_FOUND) {
            true => Ok(Login::default()),
            false => Err(failed(format!("failed ({status}){}", reason(text)))),
        };
    }
    // Not with the parser's words, which may quote the secret.
    let answer: Answer = serde_json::from_slice(&said).map_err(|_| failed("gave an answer that is not understood".into()))?;
    let server = server.to_owned();
    Ok(match answer.username == TOKEN_USER {
        true => Login { identitytoken: answer.secret, serveraddress: server, ..Login::default() },
        false => Login { username: answer.username, password: answer.secret, serveraddress: server, ..Login::default() },
    })
}

/// Its complaint, which goes to standard output by the protocol; never what may be credentials.
fn reason(text: &str) -> String {
    match text.lines().next() {
        Some(line) if !text.contains(['{', '"']) => format!(": {}", line.chars().take(200).collect::<String>()),
        _ => String::new(),
    }
}

fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs the helper to its end; what it writes to standard error is for the person who waits. Dropped, it is killed.
async fn run(file: &Path, server: &str) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let mut child = Command::new(file).arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    if let Some(mut input) = input {
        // One that ends without reading tells why by its status.
        let _ended = input.write_all(server.as_bytes()).await;
    }
    let mut said = Vec::new();
    if let Some(output) = output {
        output.take(LONGEST + 1).read_to_end(&mut said).await?;
    }
    Ok((child.wait().await?, said))
}
