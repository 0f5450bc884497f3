//! The Docker API of a task's node, as far as it is about this task: asked by a tunnel that the node opens for its manager.

use crate::connect::{Connection, Patient};
use crate::failure::{Exit, Failure};
use crate::resolve;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use skep_proto::TunnelEnd;
use skep_proto::skep::TunnelPiece;
use skep_proto::skep::tunnels_client::TunnelsClient;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Answers to questions are short; this bounds what a node may send.
pub const MOST: usize = 1 << 20;
/// Digits of a container's id.
const ID_DIGITS: usize = 64;

/// What is sent.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A container's id is made of its task's: its characters in hexadecimal, filled up with zeros.
fn container_id(task: &str) -> String {
    let digits: String = task.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0<ID_DIGITS$}")
}

pub fn lost(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Unreachable, format!("the connection to the task's node broke: {error}"))
}

/// A value of a query.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// One task, and the way to its node. What it began ends with it.
pub struct Visit {
    tunnels: TunnelsClient<Patient<Channel>>,
    node: String,
    container: String,
    /// Carry the connections.
    work: JoinSet<()>,
}

impl Visit {
    /// # Errors
    /// If there is no such task, or no node has it.
    pub async fn to(connection: &Connection, wanted: &str) -> Result<Self, Failure> {
        let task = resolve::task(connection, wanted).await?;
        if task.node_id.is_empty() {
            return Err(Failure::failed(format!("task {} is on no node yet; `swarmctl explain task {}` tells why", task.id, task.id)));
        }
        Ok(Self { tunnels: connection.tunnels(), node: task.node_id, container: container_id(&task.id), work: JoinSet::new() })
    }

    /// Another way to the same task.
    pub fn again(&self) -> Self {
        Self { tunnels: self.tunnels.clone(), node: self.node.clone(), container: self.container.clone(), work: JoinSet::new() }
    }

    /// A path below that of the task's container.
    pub fn path(&self, rest: &str) -> String {
        format!("/containers/{}/{rest}", self.container)
    }

    /// The answer, whatever its status is.
    pub async fn try_send(&mut self, method: Method, path: &str, body: Body, is_upgrade: bool) -> Result<Response<Incoming>, Failure> {
        let (tunnel, end, pieces) = TunnelEnd::new(TunnelPiece { node_id: self.node.clone(), ..TunnelPiece::default() });
        let incoming = self.tunnels.dial(ReceiverStream::new(pieces)).await.map_err(Failure::of_daemon)?.into_inner();
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
        request = request.header(header::CONTENT_TYPE, "application/json");
        sender.send_request(request.body(body).map_err(lost)?).await.map_err(lost)
    }

    /// # Errors
    /// In the node's words, if it refuses.
    pub async fn send(&mut self, method: Method, path: &str, body: Body, is_upgrade: bool) -> Result<Response<Incoming>, Failure> {
        let answer = self.try_send(method, path, body, is_upgrade).await?;
        if answer.status().is_success() || answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let exit = if answer.status() == StatusCode::NOT_FOUND { Exit::NotFound } else { Exit::Failed };
        let status = answer.status();
        let said = read(answer).await?;
        Err(Failure::new(exit, said["message"].as_str().map_or_else(|| format!("the task's node answered {status}"), str::to_owned)))
    }

    /// # Errors
    /// See [`send`](Self::send).
    pub async fn ask(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        read(self.send(method, path, body.map_or_else(nothing, json), false).await?).await
    }
}

pub fn json(value: &Value) -> Body {
    Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync()
}

async fn read(answer: Response<Incoming>) -> Result<Value, Failure> {
    let body = Limited::new(answer.into_body(), MOST).collect().await.map_err(lost)?.to_bytes();
    Ok(serde_json::from_slice(&body).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_called_after_its_task() {
        let id = container_id("0x3k7n2wq0n1l4u5c7v9d8z2a");
        assert!(id.len() == 64 && id.starts_with("3078336b376e") && id.ends_with("00000000000000"), "{id}");
    }

    #[test]
    fn a_path_may_have_any_character() {
        assert_eq!(encoded("/a b/c&d?é"), "/a%20b/c%26d%3F%C3%A9");
    }
}
