//! Answers that can be ended from outside: their node lost its rights, the leader behind them is gone, the manager stops.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Response};
use hyper::body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Status;
use tonic::body::Body;

/// Resolves when an answer has to end, with what its caller is told.
pub(crate) type Cut = BoxFuture<'static, Status>;

/// A body that ends with a status when its cut comes.
struct CutBody {
    /// `None` after the end.
    inner: Option<Body>,
    cut: Cut,
    /// What the caller is told when the body below breaks; `None` passes the break on as it is.
    broken: Option<fn() -> Status>,
}

/// gRPC tells how a call ended in the trailers.
fn last_frame(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    // It fails for odd metadata only, and ours has none.
    let _ = status.add_header(&mut trailers);
    Frame::trailers(trailers)
}

impl hyper::body::Body for CutBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Poll::Ready(status) = this.cut.as_mut().poll(context) {
            this.inner = None;
            return Poll::Ready(Some(Ok(last_frame(&status))));
        }
        match (ready!(Pin::new(inner).poll_frame(context)), this.broken) {
            (Some(Err(error)), Some(broken)) => {
                tracing::debug!(%error, "an answer broke off");
                this.inner = None;
                Poll::Ready(Some(Ok(last_frame(&broken()))))
            }
            (frame, _) => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // A cut may shorten it.
        SizeHint::default()
    }
}

/// Ends the answer's body when `cut` resolves, or with `broken` when the body breaks.
pub(crate) fn cut_with(response: Response<Body>, cut: Cut, broken: Option<fn() -> Status>) -> Response<Body> {
    response.map(|body| if body.is_end_stream() { body } else { Body::new(CutBody { inner: Some(body), cut, broken }) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    fn endless() -> Body {
        let frames = futures_util::stream::pending::<Result<Frame<Bytes>, Status>>();
        Body::new(http_body_util::StreamBody::new(frames))
    }

    #[tokio::test]
    async fn a_cut_body_ends_with_its_status() {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let cut = Box::pin(async {
            let _ = ended.await;
            Status::permission_denied("removed")
        });
        let mut body = cut_with(Response::new(endless()), cut, None).into_body();
        assert!(futures_util::poll!(std::pin::pin!(body.frame())).is_pending());
        end.send(()).unwrap();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "7");
        assert_eq!(trailers["grpc-message"], "removed");
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_broken_body_says_what_callers_understand() {
        let frames = futures_util::stream::iter([Err::<Frame<Bytes>, _>(Status::internal("reset"))]);
        let broken = Body::new(http_body_util::StreamBody::new(frames));
        let never = Box::pin(std::future::pending());
        let mut body = cut_with(Response::new(broken), never, Some(|| Status::unavailable("gone"))).into_body();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
    }
}
