//! `task exec`: a program in a task's container, on whatever node it is. The node's Docker API is asked, by a tunnel that the node
//! opens for its manager.

use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::{output, resolve};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use skep_proto::TunnelEnd;
use skep_proto::skep::TunnelPiece;
use std::io::Write as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

/// Answers to questions are short; this bounds what a node may send.
const MOST: usize = 1 << 20;
/// Of a frame of output: stream, three zeros, length (Docker Engine API, "Stream format").
const HEAD: usize = 8;
/// Digits of a container's id.
const ID_DIGITS: usize = 64;

#[derive(Debug, clap::Args)]
pub struct ExecFlags {
    /// Pass standard input on
    #[arg(long, short = 'i')]
    interactive: bool,
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

/// The Docker API of a task's node, as far as it is about this task.
struct Visit<'a> {
    connection: &'a Connection,
    node: String,
    /// Carry the connections.
    work: JoinSet<()>,
}

/// A container's id is made of its task's: its characters in hexadecimal, filled up with zeros.
fn container_id(task: &str) -> String {
    let digits: String = task.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0<ID_DIGITS$}")
}

fn lost(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Unreachable, format!("the connection to the task's node broke: {error}"))
}

impl Visit<'_> {
    async fn send(&mut self, method: Method, path: &str, body: Option<&Value>, is_upgrade: bool) -> Result<Response<Incoming>, Failure> {
        let (tunnel, end, pieces) = TunnelEnd::new(TunnelPiece { node_id: self.node.clone(), ..TunnelPiece::default() });
        let incoming = self.connection.tunnels().dial(ReceiverStream::new(pieces)).await.map_err(Failure::of_daemon)?.into_inner();
        self.work.spawn(async move {
            // What broke, the answer's reader sees.
            let _ = tunnel.carry(incoming).await;
        });
        let (mut sender, driver) = http1::handshake(TokioIo::new(end)).await.map_err(lost)?;
        self.work.spawn(async move {
            let _ = driver.with_upgrades().await; // likewise
        });
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "skep");
        if is_upgrade {
            request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "tcp");
        }
        let body = body.map(|body| Bytes::from(body.to_string()));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(lost)?;
        let answer = sender.send_request(request).await.map_err(lost)?;
        if answer.status().is_success() || answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let exit = if answer.status() == StatusCode::NOT_FOUND { Exit::NotFound } else { Exit::Failed };
        let status = answer.status();
        let said = read(answer).await?;
        Err(Failure::new(exit, said["message"].as_str().map_or_else(|| format!("the task's node answered {status}"), str::to_owned)))
    }

    async fn ask(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        read(self.send(method, path, body, false).await?).await
    }
}

async fn read(answer: Response<Incoming>) -> Result<Value, Failure> {
    let body = Limited::new(answer.into_body(), MOST).collect().await.map_err(lost)?.to_bytes();
    Ok(serde_json::from_slice(&body).unwrap_or_default())
}

/// The program's exit status.
pub async fn run(flags: ExecFlags, connection: &Connection) -> Result<u8, Failure> {
    let task = resolve::task(connection, &flags.task).await?;
    if task.node_id.is_empty() {
        return Err(Failure::failed(format!("task {} is on no node yet; `swarmctl explain task {}` tells why", task.id, task.id)));
    }
    let mut visit = Visit { connection, node: task.node_id.clone(), work: JoinSet::new() };
    let wish = json!({
        "Cmd": flags.command, "Env": flags.env, "User": flags.user, "WorkingDir": flags.workdir,
        "AttachStdin": flags.interactive, "AttachStdout": true, "AttachStderr": true,
    });
    let made = visit.ask(Method::POST, &format!("/containers/{}/exec", container_id(&task.id)), Some(&wish)).await?;
    let exec = made["Id"].as_str().ok_or_else(|| Failure::failed("the task's node did not say what it made"))?.to_owned();
    let answer = visit.send(Method::POST, &format!("/exec/{exec}/start"), Some(&json!({ "Detach": false })), true).await?;
    let stream = TokioIo::new(hyper::upgrade::on(answer).await.map_err(lost)?);
    let (output, input) = tokio::io::split(stream);
    let mut typing = JoinSet::new();
    if flags.interactive {
        typing.spawn(type_in(tokio::io::stdin(), input));
    }
    tokio::select! {
        shown = show(output) => shown?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::failed("stopped looking; the program goes on in the container")),
    }
    let ended = visit.ask(Method::GET, &format!("/exec/{exec}/json"), None).await?;
    let code = ended["ExitCode"].as_i64().ok_or_else(|| Failure::failed("the connection ended before the program did"))?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
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

    #[test]
    fn a_container_is_called_after_its_task() {
        let id = container_id("0x3k7n2wq0n1l4u5c7v9d8z2a");
        assert!(id.len() == 64 && id.starts_with("3078336b376e") && id.ends_with("00000000000000"), "{id}");
    }

    #[tokio::test]
    async fn what_is_no_output_is_refused() {
        assert!(show(&[1u8, 0, 0, 0, 0, 0, 0, 0][..]).await.is_ok());
        assert!(show(&[1u8, 0, 0, 0, 0xff, 0, 0, 0][..]).await.is_err());
        assert!(show(&[1u8, 0, 0, 0, 0, 0, 0, 9, b'x'][..]).await.is_err());
    }
}
