//! `/containers/{id}/logs`.

use super::find;
use crate::logs::stamp;
use crate::query::Query;
use crate::stream::{self, FrameKind};
use crate::{ApiError, ApiVersion, Backend, ContainerLine, LinesWanted, StdStream};
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use skep_types::Timestamp;

/// Bytes of a time and the space behind it.
const STAMP: usize = 31;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    timestamps: bool,
    /// Details are what the log driver was told to add to each line: nothing here, but for the space behind them.
    details: bool,
    is_tty: bool,
}

pub(super) async fn logs(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Result<Response, ApiError> {
    let wanted = LinesWanted {
        stdout: query.is("stdout"),
        stderr: query.is("stderr"),
        since: query.time("since")?,
        // What is no number is as `all`.
        tail: query.text("tail").and_then(|text| text.parse().ok()),
        follow: query.is("follow"),
    };
    if !wanted.stdout && !wanted.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let until = query.time("until")?;
    let container = find(&backend, &id).await?;
    let look = Look { timestamps: query.is("timestamps"), details: query.is("details"), is_tty: container.spec.tty };
    let lines = backend.containers.logs(&container.id, wanted).await?;
    // Over: the line past the end was seen.
    let batches = lines.scan(false, move |is_over, batch| {
        let out = if *is_over { None } else { Some(written(&batch, look, until)) };
        *is_over |= out.as_ref().is_some_and(|(_, over)| *over);
        std::future::ready(out.map(|(bytes, _)| Ok(bytes)))
    });
    Ok(stream::bytes(stream::content_type(version, look.is_tty), batches))
}

/// Whether a line is past the end that is wanted: lines come in the order of their times.
fn written(batch: &[ContainerLine], look: Look, until: Option<Timestamp>) -> (Bytes, bool) {
    let bytes: usize = batch.iter().map(|line| line.data.len()).sum();
    let stamps = if look.timestamps { STAMP } else { 0 };
    let mut out = BytesMut::with_capacity(bytes + batch.len() * (stream::FRAME_HEAD + stamps + usize::from(look.details)));
    for line in batch {
        if until.is_some_and(|until| line.time > until) {
            return (out.freeze(), true);
        }
        let time = if look.timestamps { stamp(line.time) + " " } else { String::new() };
        if !look.is_tty {
            let length = time.len() + usize::from(look.details) + line.data.len();
            stream::put_frame_head(&mut out, frame_kind(line.stream), length);
        }
        out.put_slice(time.as_bytes());
        if look.details {
            out.put_u8(b' ');
        }
        out.put_slice(&line.data);
    }
    (out.freeze(), false)
}

pub(super) fn frame_kind(stream: StdStream) -> FrameKind {
    match stream {
        StdStream::Stdout => FrameKind::Stdout,
        StdStream::Stderr => FrameKind::Stderr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_framed_and_end_where_they_shall() {
        let line = |time, stream| ContainerLine { time: Timestamp::from_secs(time), stream, data: Bytes::from_static(b"hi\n") };
        let batch = [line(1, StdStream::Stdout), line(2, StdStream::Stderr), line(3, StdStream::Stdout)];
        let plain = Look { timestamps: false, details: false, is_tty: false };
        let (out, is_over) = written(&batch, plain, Some(Timestamp::from_secs(2)));
        assert_eq!(out.as_ref(), b"\x01\0\0\0\0\0\0\x03hi\n\x02\0\0\0\0\0\0\x03hi\n");
        assert!(is_over);
        let (out, is_over) = written(&batch[..1], Look { timestamps: true, details: true, is_tty: true }, None);
        assert_eq!(out.as_ref(), b"1970-01-01T00:00:01.000000000Z  hi\n");
        assert!(!is_over);
    }
}
