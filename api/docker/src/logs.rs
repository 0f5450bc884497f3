//! Logs of services and tasks: lines of many tasks on many nodes in one stream of frames.

use crate::query::Query;
use crate::stream::{self, FrameKind};
use crate::{ApiError, ApiVersion, Backend, ErrorKind, LogRecord, LogSelect, LogSource, lookup};
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _};
use skep_types::{TaskSpec, Timestamp};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// Nine digits always, so that columns stay columns.
const TIME: &[BorrowedFormatItem<'static>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");

pub(crate) async fn of_service(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Result<Response, ApiError> {
    let (select, look) = asked(&query)?;
    let service = lookup::service(&backend, &id).await?;
    let is_tty = has_tty(&service.spec.task);
    Ok(answer(backend, LogSource::Service(service.id.to_string()), select, Look { is_tty, ..look }, version))
}

pub(crate) async fn of_task(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Result<Response, ApiError> {
    let (select, look) = asked(&query)?;
    let task = lookup::task(&backend, &id).await?;
    let is_tty = has_tty(&task.spec);
    Ok(answer(backend, LogSource::Task(task.id.to_string()), select, Look { is_tty, ..look }, version))
}

fn has_tty(spec: &TaskSpec) -> bool {
    spec.container().is_some_and(|container| container.tty)
}

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    timestamps: bool,
    details: bool,
    is_tty: bool,
}

fn asked(query: &Query) -> Result<(LogSelect, Look), ApiError> {
    // Plain errors in the daemon: 500.
    let wrong = |text: &str| ApiError::new(ErrorKind::Unknown, text);
    let select = LogSelect {
        stdout: query.is("stdout"),
        stderr: query.is("stderr"),
        follow: query.is("follow"),
        since: query.time("since")?,
        tail: match query.text("tail") {
            None | Some("all") => None,
            Some(text) => Some(match text.parse::<i64>() {
                Ok(lines) => u64::try_from(lines).map_err(|_| wrong("negative tail values not supported"))?,
                Err(_) => return Err(wrong("tail value must be a positive integer or \"all\"")),
            }),
        },
    };
    if !select.stdout && !select.stderr {
        return Err(wrong("Bad parameters: you must choose at least one stream"));
    }
    Ok((select, Look { timestamps: query.is("timestamps"), details: query.is("details"), is_tty: false }))
}

/// Status and headers at once, before the nodes that have the lines are asked.
fn answer(backend: Backend, source: LogSource, select: LogSelect, look: Look, version: ApiVersion) -> Response {
    let records = futures_util::stream::once(async move { backend.cluster.logs(source, select).await }).try_flatten();
    let frames = records.map(move |record| Ok(record.map_or_else(|error| broken(&error, look), |record| written(&record, look))));
    stream::bytes(stream::content_type(version, look.is_tty), frames)
}

fn broken(error: &ApiError, look: Look) -> Bytes {
    let text = format!("Error grabbing logs: {error}\n");
    if look.is_tty { text.into() } else { stream::frame(FrameKind::System, text.as_bytes()) }
}

/// Time, details, line.
fn written(record: &LogRecord, look: Look) -> Bytes {
    let mut line = BytesMut::new();
    if look.timestamps {
        line.put_slice(stamp(record.at).as_bytes());
        line.put_u8(b' ');
    }
    if look.details {
        line.put_slice(details(record).as_bytes());
        line.put_u8(b' ');
    }
    line.put_slice(&record.data);
    if look.is_tty {
        return line.freeze();
    }
    stream::frame(if record.is_stderr { FrameKind::Stderr } else { FrameKind::Stdout }, &line)
}

pub(crate) fn stamp(at: Timestamp) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(at.0.into()).ok();
    at.and_then(|at| at.format(TIME).ok()).unwrap_or_else(|| "0001-01-01T00:00:00.000000000Z".into())
}

/// `key=value,…` in order, both as in a query. Clients put the name of a task together from the first three.
fn details(record: &LogRecord) -> String {
    let own = [("node.id", &record.node_id), ("service.id", &record.service_id), ("task.id", &record.task_id)];
    let own = own.into_iter().map(|(key, value)| (format!("com.docker.swarm.{key}"), value.clone()));
    let all = own.chain(record.attributes.iter().cloned());
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let mut pairs: Vec<String> = all.map(|(key, value)| format!("{}={}", encoded(&key), encoded(&value))).collect();
    pairs.sort_unstable();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> LogRecord {
        LogRecord {
            service_id: "s1".into(),
            node_id: "n1".into(),
            task_id: "t1".into(),
            at: Timestamp(1_700_000_000_120_000_000),
            is_stderr: true,
            data: Bytes::from_static(b"hello\n"),
            attributes: vec![("a b".into(), "x,y=z".into())],
        }
    }

    #[test]
    fn the_time_is_before_the_details_and_these_before_the_line() {
        let plain = Look { timestamps: false, details: false, is_tty: false };
        assert_eq!(written(&record(), plain).as_ref(), b"\x02\0\0\0\0\0\0\x06hello\n");
        let all = written(&record(), Look { timestamps: true, details: true, is_tty: true });
        let wanted = "2023-11-14T22:13:20.120000000Z a+b=x%2Cy%3Dz,com.docker.swarm.node.id=n1,com.docker.swarm.service.id=s1,\
                      com.docker.swarm.task.id=t1 hello\n";
        assert_eq!(std::str::from_utf8(&all).unwrap(), wanted);
    }

    #[test]
    fn a_stream_must_be_chosen_and_the_tail_be_a_number() {
        let ask = |text: &str| asked(&Query::parse(text));
        assert!(ask("").unwrap_err().message.contains("at least one stream"));
        assert_eq!(ask("").unwrap_err().status(), 500);
        for odd in ["tail=x&stdout=1", "tail=-1&stdout=1", "tail=1.5&stderr=1"] {
            assert_eq!(ask(odd).unwrap_err().status(), 500, "{odd}");
        }
        let (select, look) = ask("stdout=1&stderr=0&follow=true&timestamps=1&tail=5&since=1.5&details=1").unwrap();
        let wanted = LogSelect { stdout: true, stderr: false, follow: true, since: Some(Timestamp(1_500_000_000)), tail: Some(5) };
        assert_eq!(select, wanted);
        assert_eq!(look, Look { timestamps: true, details: true, is_tty: false });
        assert_eq!(ask("stdout=1&tail=all").unwrap().0.tail, None);
    }
}
