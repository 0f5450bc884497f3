//! Answers that go on: frames of several streams in one, JSON objects one after the other.

use crate::{ApiError, ApiVersion};
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::{HeaderValue, header};
use serde::Serialize;
use std::convert::Infallible;

/// Which stream a frame belongs to; the number is the frame's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    Stdout = 1,
    Stderr = 2,
    /// An error of the daemon, after the answer began.
    System = 3,
}

pub(crate) const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
pub(crate) const RAW: &str = "application/vnd.docker.raw-stream";

/// One byte of kind, three of zero, four of length (big-endian), the payload.
#[must_use]
pub fn frame(kind: FrameKind, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(FRAME_HEAD + payload.len());
    put_frame_head(&mut out, kind, payload.len());
    out.extend_from_slice(payload);
    out.freeze()
}

/// Bytes of a frame before its payload.
pub(crate) const FRAME_HEAD: usize = 8;

/// For many frames in one piece of memory: `length` bytes of payload must follow.
pub(crate) fn put_frame_head(out: &mut BytesMut, kind: FrameKind, length: usize) {
    out.put_u8(kind as u8);
    out.put_bytes(0, 3);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

/// Before API 1.42 the type did not tell whether a stream has frames.
#[must_use]
pub fn content_type(version: ApiVersion, is_tty: bool) -> HeaderValue {
    HeaderValue::from_static(if is_tty || version < ApiVersion::v1(42) { RAW } else { MULTIPLEXED })
}

/// 200 at once; the bytes follow as they come. What breaks is said by a last frame of kind [`FrameKind::System`].
pub fn bytes<S>(content_type: HeaderValue, stream: S) -> Response
where
    S: Stream<Item = Result<Bytes, ApiError>> + Send + 'static,
{
    let stream = stream.map(|item| Ok::<_, Infallible>(item.unwrap_or_else(|error| frame(FrameKind::System, error.message.as_bytes()))));
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(stream)).into_response()
}

/// An object as a line of its own. Pull, load and push customarily end lines with CRLF.
pub fn line<T: Serialize>(value: &T) -> Bytes {
    let mut text = serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
    text.extend_from_slice(b"\r\n");
    text.into()
}

#[derive(Serialize)]
struct Broken {
    #[serde(rename = "errorDetail")]
    detail: Detail,
    error: String,
}

#[derive(Serialize)]
struct Detail {
    message: String,
}

/// 200 at once; one object after the other. What breaks is said by a last one: `{"errorDetail":{"message":…},"error":…}`.
pub fn lines<T, S>(stream: S) -> Response
where
    T: Serialize,
    S: Stream<Item = Result<T, ApiError>> + Send + 'static,
{
    let stream = stream.map(|item| {
        Ok::<_, Infallible>(match item {
            Ok(value) => line(&value),
            Err(error) => line(&Broken { detail: Detail { message: error.message.clone() }, error: error.message }),
        })
    });
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::from_stream(stream)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_eight_bytes_before_its_payload() {
        assert_eq!(frame(FrameKind::Stderr, b"abc").as_ref(), b"\x02\0\0\0\0\0\0\x03abc");
        assert_eq!(content_type(ApiVersion::v1(41), false), RAW);
        assert_eq!(content_type(ApiVersion::v1(42), false), MULTIPLEXED);
        assert_eq!(content_type(ApiVersion::v1(42), true), RAW);
    }
}
