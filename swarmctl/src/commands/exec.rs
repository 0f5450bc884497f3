//! `task exec`: a program in a task's container, on whatever node it is. The node's Docker API is asked, by a tunnel that the node
//! opens for its manager.

use super::terminal::{RawTerminal, size};
use super::visit::{MOST, Visit, json as body, lost};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output;
use http::Method;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::io::Write as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Of a frame of output: stream, three zeros, length (Docker Engine API, "Stream format").
const HEAD: usize = 8;
/// Read at once of what a terminal shows.
const PIECE: usize = 16 * 1024;

#[derive(Debug, clap::Args)]
pub struct ExecFlags {
    /// Pass standard input on
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Give the program a terminal, which is this one
    #[arg(long, short = 't')]
    tty: bool,
    /// Set a variable
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// User, or user:group, by name or number
    #[arg(long, short = 'u', default_value = "")]
    user: String,
    /// Directory to begin in
    #[arg(long, short = 'w', default_value = "", value_name = "DIR")]
    workdir: String,
    /// Task: id, or name such as web.1
    task: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The program's exit status.
pub async fn run(flags: ExecFlags, connection: &Connection) -> Result<u8, Failure> {
    let mut visit = Visit::to(connection, &flags.task).await?;
    let terminal = if flags.tty && flags.interactive { Some(RawTerminal::enter()?) } else { None };
    let mut wish = json!({
        "Cmd": flags.command, "Env": flags.env, "User": flags.user, "WorkingDir": flags.workdir, "Tty": flags.tty,
        "AttachStdin": flags.interactive, "AttachStdout": true, "AttachStderr": true,
    });
    if terminal.is_some() {
        // Its keys are the program's: none of them ends our part.
        wish["DetachKeys"] = json!("ctrl-@,ctrl-@,ctrl-@,ctrl-@");
    }
    if flags.tty {
        let (rows, columns) = size();
        wish["ConsoleSize"] = json!([rows, columns]);
    }
    let path = visit.path("exec");
    let made = visit.ask(Method::POST, &path, Some(&wish)).await?;
    let exec = made["Id"].as_str().ok_or_else(|| Failure::failed("the task's node did not say what it made"))?.to_owned();
    let start = body(&json!({ "Detach": false, "Tty": flags.tty }));
    let answer = visit.send(Method::POST, &format!("/exec/{exec}/start"), start, true).await?;
    let stream = TokioIo::new(hyper::upgrade::on(answer).await.map_err(lost)?);
    let (output, input) = tokio::io::split(stream);
    let mut typing = JoinSet::new();
    if flags.interactive {
        typing.spawn(type_in(tokio::io::stdin(), input));
    }
    let showing = async { if flags.tty { show_terminal(output).await } else { show(output).await } };
    tokio::select! {
        shown = showing => shown?,
        // In its raw mode the terminal makes no signal of it.
        _ = tokio::signal::ctrl_c() => return Err(Failure::failed("stopped looking; the program goes on in the container")),
        error = follow_size(visit.again(), &exec), if terminal.is_some() => return Err(error),
    }
    drop(terminal);
    let ended = visit.ask(Method::GET, &format!("/exec/{exec}/json"), None).await?;
    let code = ended["ExitCode"].as_i64().ok_or_else(|| Failure::failed("the connection ended before the program did"))?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Tells the program of each change of the terminal's size.
async fn follow_size(mut visit: Visit, exec: &str) -> Failure {
    let mut changes = match signal(SignalKind::window_change()) {
        Ok(changes) => changes,
        Err(error) => return Failure::failed(format!("no signal of the terminal can be had: {error}")),
    };
    loop {
        changes.recv().await;
        let (rows, columns) = size();
        // A program that has ended has no terminal; its reader sees that.
        let _ = visit.ask(Method::POST, &format!("/exec/{exec}/resize?h={rows}&w={columns}"), None).await;
    }
}

/// Writes what a terminal shows.
async fn show_terminal(mut from: impl AsyncRead + Unpin) -> Result<(), Failure> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).await.map_err(lost)? {
            0 => return Ok(()),
            read => output::put_bytes(&piece[..read])?,
        }
    }
}

/// What the program is told, and its end.
async fn type_in(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    // A program may end before it has read all, which its exit status tells.
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// Writes each frame to the stream it is of.
async fn show(mut from: impl AsyncRead + Unpin) -> Result<(), Failure> {
    let mut head = [0; HEAD];
    let mut piece = Vec::new();
    loop {
        match from.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(lost(error)),
        }
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length > MOST {
            return Err(Failure::failed("the task's node sends what is no output of a program"));
        }
        piece.resize(length, 0);
        from.read_exact(&mut piece).await.map_err(lost)?;
        match head[0] {
            2 => std::io::stderr().lock().write_all(&piece)?,
            _ => output::put_bytes(&piece)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_output_is_refused() {
        assert!(show(&[1u8, 0, 0, 0, 0, 0, 0, 0][..]).await.is_ok());
        assert!(show(&[1u8, 0, 0, 0, 0xff, 0, 0, 0][..]).await.is_err());
        assert!(show(&[1u8, 0, 0, 0, 0, 0, 0, 9, b'x'][..]).await.is_err());
    }
}
