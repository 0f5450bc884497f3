//! Connections that become streams: `attach`, `exec start`.
//!
//! A client that asks for an upgrade gets 101 and the connection both ways, with what it sent behind its request. One that does
//! not gets 200 and the stream until its end; its input is the request's body. Either may end its input and go on reading.

use crate::ApiError;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::{ReaderStream, StreamReader};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the client sends; its end is the end of input, not of the connection.
pub type Input = Pin<Box<dyn AsyncRead + Send>>;
/// What the client gets. `shutdown` ends the answer.
pub type Output = Pin<Box<dyn AsyncWrite + Send>>;

/// Bytes on their way to a client that reads slowly; the session waits when it is full.
const PIPE: usize = 64 << 10;

/// Owns the tasks of streams that outlive their request. The server waits for them. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Sessions {
    /// They end with `stop`.
    pub fn new(stop: CancellationToken) -> Self {
        Self { tasks: TaskTracker::new(), stop }
    }

    pub fn spawn(&self, session: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = session => {}
            }
        });
    }

    /// Ends all.
    pub async fn cut(&self) {
        self.stop.cancel();
        self.ended().await;
    }

    /// Returns when all have ended. Call it after `stop`.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The part of a request that makes a stream of its connection.
#[derive(Debug)]
pub(crate) struct Hijack {
    wants_upgrade: bool,
    upgrade: Option<OnUpgrade>,
    sessions: Sessions,
}

impl Hijack {
    /// Take it before the body is read.
    pub fn of(parts: &mut Parts) -> Self {
        Self {
            wants_upgrade: parts.headers.contains_key(header::UPGRADE),
            upgrade: parts.extensions.remove(),
            sessions: parts.extensions.get().cloned().unwrap_or_default(),
        }
    }

    /// Answers at once, and gives the stream to `session`, which sees an error of reading or writing when the client goes away.
    /// `content_type` is told on an upgrade; without one it is the raw stream's, as dockerd. `body` is the input of a client that
    /// did not ask for an upgrade.
    pub fn answer<F, Fut>(self, content_type: HeaderValue, body: Body, session: F) -> Response
    where
        F: FnOnce(Input, Output) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        if !self.wants_upgrade {
            let (near, far) = tokio::io::duplex(PIPE);
            let input = body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
            self.sessions.spawn(session(Box::pin(StreamReader::new(input)), Box::pin(near)));
            let raw = HeaderValue::from_static(crate::stream::RAW);
            return ([(header::CONTENT_TYPE, raw)], Body::from_stream(ReaderStream::new(far))).into_response();
        }
        let Some(upgrade) = self.upgrade else {
            return ApiError::invalid("this connection cannot be upgraded").into_response();
        };
        self.sessions.spawn(async move {
            match upgrade.await {
                // What came behind the request is read first.
                Ok(connection) => {
                    let (input, output) = tokio::io::split(TokioIo::new(connection));
                    session(Box::pin(input), Box::pin(output)).await;
                }
                Err(error) => tracing::debug!(%error, "a client went away before its stream began"),
            }
        });
        let headers = [
            (header::CONTENT_TYPE, content_type),
            (header::CONNECTION, HeaderValue::from_static("Upgrade")),
            (header::UPGRADE, HeaderValue::from_static("tcp")),
        ];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }
}
