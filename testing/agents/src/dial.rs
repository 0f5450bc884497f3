//! Connections that cost little: TCP, TLS, HTTP/2, and nothing between that and the generated clients.

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::body::Body;

/// For TCP and TLS together (spec wire-behaviour 9.1).
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no connection with a manager.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("could not connect to {address}")]
    Tcp { address: String, source: io::Error },
    #[error("no secure connection to {address}")]
    Tls { address: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{address} did not answer within {} s", DIAL_LIMIT.as_secs())]
    TimedOut { address: String },
    #[error("no HTTP/2 with {address}")]
    Http { address: String, source: hyper::Error },
}

/// The sending side of a connection, as the generated clients take it. Clones share the connection, which ends with the last of
/// them and of the streams on it.
#[derive(Debug, Clone)]
pub struct Http2(SendRequest<Body>);

impl tower::Service<Request<Body>> for Http2 {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// What the generated clients put before their paths. The name in it is not looked at: TLS has said who the server is.
#[must_use]
pub fn origin() -> Uri {
    Uri::from_static("http://swarm-manager")
}

/// Connects to `address` and shakes hands as `secure` does.
///
/// # Errors
/// Which of the steps failed.
pub async fn connect<S, F, E>(address: &str, secure: impl FnOnce(TcpStream) -> F) -> Result<Http2, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<S, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connecting = async {
        let tcp = TcpStream::connect(address).await.map_err(|source| DialError::Tcp { address: address.to_owned(), source })?;
        // Small messages back and forth: never wait for more to send.
        let _ = tcp.set_nodelay(true);
        secure(tcp).await.map_err(|source| DialError::Tls { address: address.to_owned(), source: source.into() })
    };
    let stream = tokio::time::timeout(DIAL_LIMIT, connecting).await.map_err(|_| DialError::TimedOut { address: address.to_owned() })??;
    let shaken = Builder::new(TokioExecutor::new()).handshake::<_, Body>(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|source| DialError::Http { address: address.to_owned(), source })?;
    // Ends when the last sender and the last stream are gone; an error reaches the calls under way by itself.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "connection ended");
        }
    });
    Ok(Http2(sender))
}
