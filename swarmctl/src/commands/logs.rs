//! `service logs` and `task logs`.

use crate::connect::Connection;
use crate::failure::Failure;
use crate::{output, when};
use skep_proto::v1;
use skep_types::Timestamp;
use std::collections::BTreeMap;
use std::io::Write;

#[derive(Debug, clap::Args)]
pub struct LogFlags {
    /// Go on with what comes
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only lines since a time (2026-01-02T15:04:05Z, Unix time, or a length such as 10m)
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    since: Option<Timestamp>,
    /// Only the last N lines of each task, or "all"
    #[arg(long, short = 'n', default_value = "all", value_name = "N", value_parser = tail)]
    tail: Tail,
    /// Begin each line with its time
    #[arg(long, short = 't')]
    timestamps: bool,
    /// Do not say which task wrote a line
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Clone, Copy)]
struct Tail(Option<u32>);

fn tail(text: &str) -> Result<Tail, String> {
    if text == "all" {
        return Ok(Tail(None));
    }
    text.parse().map(|lines| Tail(Some(lines))).map_err(|_| format!("{text:?} is not a number of lines; write a number or all"))
}

impl LogFlags {
    fn options(&self) -> v1::LogSubscriptionOptions {
        let since = self.since.map(|at| {
            let (seconds, nanos) = at.parts();
            prost_types::Timestamp { seconds, nanos }
        });
        // The wire counts from -1 (no line) downwards; 0 means all (wire-behaviour 21).
        let tail = self.tail.0.map_or(0, |lines| -i64::from(lines) - 1);
        v1::LogSubscriptionOptions { streams: Vec::new(), follow: self.follow, tail, since }
    }
}

/// Prints lines as they come; standard error lines go to our standard error.
pub async fn follow(selector: v1::LogSelector, flags: &LogFlags, connection: &Connection) -> Result<(), Failure> {
    let nodes = super::task::node_names(connection).await?;
    let names = task_names(&selector, connection).await?;
    let request = v1::SubscribeLogsRequest { selector: Some(selector), options: Some(flags.options()) };
    let mut stream = connection.logs().subscribe_logs(request).await?.into_inner();
    loop {
        let batch = tokio::select! {
            batch = stream.message() => batch?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(batch) = batch else { return Ok(()) };
        for message in batch.messages {
            write(&message, flags, &names, &nodes)?;
        }
    }
}

/// `name.slot` of every task there is now; later ones are shown by id.
async fn task_names(selector: &v1::LogSelector, connection: &Connection) -> Result<BTreeMap<String, String>, Failure> {
    let filters = v1::list_tasks_request::Filters {
        service_ids: selector.service_ids.clone(),
        id_prefixes: selector.task_ids.clone(),
        ..Default::default()
    };
    let tasks = connection.control().list_tasks(v1::ListTasksRequest { filters: Some(filters) }).await?.into_inner().tasks;
    let name = |task: v1::Task| {
        let service = task.service_annotations.map(|annotations| annotations.name).unwrap_or_default();
        (task.id.clone(), format!("{service}.{}.{}", task.slot, super::short(&task.id, false)))
    };
    Ok(tasks.into_iter().map(name).collect())
}

fn write(
    message: &v1::LogMessage,
    flags: &LogFlags,
    names: &BTreeMap<String, String>,
    nodes: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let mut line = Vec::new();
    if flags.timestamps
        && let Some(at) = &message.timestamp
    {
        let at = Timestamp(at.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(at.nanos)));
        line.extend(format!("{} ", when::rfc3339(at)).into_bytes());
    }
    if !flags.raw
        && let Some(context) = &message.context
    {
        let task = names.get(&context.task_id).unwrap_or(&context.task_id);
        let node = nodes.get(&context.node_id).unwrap_or(&context.node_id);
        line.extend(output::plain(&format!("{task}@{node}    | ")).as_bytes());
    }
    line.extend(&message.data);
    if !line.ends_with(b"\n") {
        line.push(b'\n');
    }
    if message.stream == v1::LogStream::Stderr as i32 {
        std::io::stderr().lock().write_all(&line)?;
        return Ok(());
    }
    output::put_bytes(&line)
}
