//! Logs of services and tasks.

use crate::docker::failure;
use crate::docker::manager::{Manager, answer, read};
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use skep_docker_api::{ApiError, LogRecord, LogSelect, LogSource};
use skep_proto::{ToWire as _, v1};
use skep_types::Timestamp;

type Records = BoxStream<'static, Result<LogRecord, ApiError>>;

pub async fn subscribe(manager: &Manager, source: LogSource, select: LogSelect) -> Result<Records, ApiError> {
    let selector = match source {
        LogSource::Service(id) => v1::LogSelector { service_ids: vec![id], ..Default::default() },
        LogSource::Task(id) => v1::LogSelector { task_ids: vec![id], ..Default::default() },
    };
    let request = v1::SubscribeLogsRequest { selector: Some(selector), options: Some(options(&select)) };
    // The manager waits for nodes to listen before it begins to answer, but not for ever.
    let messages = answer(manager.logs().subscribe_logs(request)).await?;
    let records =
        messages.map_err(|status| failure::of_manager(&status)).map_ok(|batch| stream::iter(batch.messages.into_iter().map(record)));
    Ok(records.try_flatten().boxed())
}

fn options(select: &LogSelect) -> v1::LogSubscriptionOptions {
    let LogSelect { stdout, stderr, follow, since, tail } = select;
    let wanted = [(*stdout, v1::LogStream::Stdout), (*stderr, v1::LogStream::Stderr)];
    v1::LogSubscriptionOptions {
        streams: wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, stream)| stream as i32).collect(),
        follow: *follow,
        // Counted from -1, no line, downwards; 0 means all (wire-behaviour 21).
        tail: tail.map_or(0, |lines| i64::try_from(lines).unwrap_or(i64::MAX - 1).saturating_add(1).saturating_neg()),
        since: since.map(|since| since.to_wire()),
    }
}

fn record(message: v1::LogMessage) -> Result<LogRecord, ApiError> {
    let v1::LogMessage { context, timestamp, stream, data, attrs } = message;
    let v1::LogContext { service_id, node_id, task_id } = context.unwrap_or_default();
    let at: Option<Timestamp> = timestamp.map(|at| read("log line", at)).transpose()?;
    Ok(LogRecord {
        service_id,
        node_id,
        task_id,
        at: at.unwrap_or_default(),
        is_stderr: stream == v1::LogStream::Stderr as i32,
        data: data.into(),
        attributes: attrs.into_iter().map(|attr| (attr.key, attr.value)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_counts_downwards_from_none() {
        let tail = |tail| options(&LogSelect { tail, ..LogSelect::default() }).tail;
        assert_eq!((tail(None), tail(Some(0)), tail(Some(5))), (0, -1, -6));
        assert!(tail(Some(u64::MAX)) < 0);
    }

    #[test]
    fn one_stream_can_be_had_alone() {
        let streams = |stdout, stderr| options(&LogSelect { stdout, stderr, ..LogSelect::default() }).streams;
        assert_eq!((streams(true, false), streams(false, true), streams(true, true)), (vec![1], vec![2], vec![1, 2]));
    }
}
