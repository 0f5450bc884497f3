//! Sends the output of tasks to those who subscribed at the manager (wire-behaviour 21).

use super::SessionConfig;
use super::link::Loss;
use crate::engine::Engine;
use crate::error::chain;
use crate::logs::{LogLine, LogQuery, LogStream, Tail, read_logs};
use skep_proto::v1::log_broker_client::LogBrokerClient;
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{Task, TaskId, Timestamp};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

/// Batches of lines on their way; a reader waits when the manager is slow.
const IN_FLIGHT: usize = 16;
/// Of one message, bytes of output: well below 4 MiB with everything round it.
const MESSAGE: usize = 512 * 1024;

/// Serves subscriptions of the manager at this address; returns why it ended.
pub async fn subscriptions(channel: Channel, address: &str, config: &Arc<SessionConfig>, engine: &Engine) -> Loss {
    let mut broker = LogBrokerClient::new(channel);
    let mut stream = match broker.listen_subscriptions(v1::ListenSubscriptionsRequest {}).await {
        Ok(stream) => stream.into_inner(),
        // A manager without logs is a manager all the same.
        Err(status) if status.code() == Code::Unimplemented => return std::future::pending().await,
        Err(status) => return Loss::of("log subscriptions", &status),
    };
    let mut publishers: JoinSet<()> = JoinSet::new();
    let mut known: HashMap<String, CancellationToken> = HashMap::new();
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            Some(_) = publishers.join_next(), if !publishers.is_empty() => continue,
        };
        match message {
            Ok(Some(message)) if message.close => {
                if let Some(stop) = known.remove(&message.id) {
                    stop.cancel();
                }
            }
            Ok(Some(message)) if known.contains_key(&message.id) => {}
            Ok(Some(message)) => {
                let stop = CancellationToken::new();
                known.insert(message.id.clone(), stop.clone());
                let (address, config, engine) = (address.to_owned(), Arc::clone(config), engine.clone());
                publishers.spawn(async move {
                    let id = message.id.clone();
                    if let Err(error) = publish(&address, config, engine, message, stop).await {
                        tracing::debug!(subscription = id, error, "log subscription ended");
                    }
                });
            }
            Ok(None) => return Loss { reason: "the manager ended the log subscriptions".into(), answered: true },
            Err(status) => return Loss::of("log subscriptions", &status),
        }
    }
}

/// What a subscription's options ask for.
fn query(options: Option<v1::LogSubscriptionOptions>) -> Result<LogQuery, String> {
    let options = options.unwrap_or_default();
    let wants = |stream: v1::LogStream| options.streams.is_empty() || options.streams.contains(&(stream as i32));
    let since = options.since.map(Timestamp::from_wire).transpose().map_err(|error| error.to_string())?;
    let tail = match options.tail {
        0 => Tail::All,
        // -1 = none, -2 = the last one, and so on.
        negative if negative < 0 => Tail::Last(usize::try_from(-(negative + 1)).unwrap_or(usize::MAX)),
        _ => return Err("a positive tail counts from the beginning, which is not supported".into()),
    };
    Ok(LogQuery { stdout: wants(v1::LogStream::Stdout), stderr: wants(v1::LogStream::Stderr), since, tail, follow: options.follow })
}

fn selected(selector: &v1::LogSelector, task: &Task) -> bool {
    let has = |list: &[String], id: Option<&str>| id.is_some_and(|id| list.iter().any(|known| known == id));
    has(&selector.task_ids, Some(task.id.as_str()))
        || has(&selector.service_ids, task.service_id.as_ref().map(|id| id.as_str()))
        || has(&selector.node_ids, task.node_id.as_ref().map(|id| id.as_str()))
}

async fn publish(
    address: &str,
    config: Arc<SessionConfig>,
    engine: Engine,
    subscription: v1::SubscriptionMessage,
    stop: CancellationToken,
) -> Result<(), String> {
    // A connection of its own: the lines for a reader that stands still fill HTTP/2's window, which all calls of a connection
    // share. Heartbeats would wait behind them, and the manager take this node for dead.
    let channel = config.dial.dial(address).await.map_err(|error| chain(&error))?;
    let (messages, queue) = mpsc::channel(IN_FLIGHT);
    let mut broker = LogBrokerClient::new(channel);
    let id = subscription.id.clone();
    let send = async move { broker.publish_logs(ReceiverStream::new(queue)).await.map(drop).map_err(|status| status.message().to_owned()) };
    let read = async move {
        let close = messages.clone();
        let query = query(subscription.options)?;
        let selector = subscription.selector.unwrap_or_default();
        let mut list = engine.tasks.clone();
        let mut begun: BTreeSet<TaskId> = BTreeSet::new();
        let mut readers: JoinSet<()> = JoinSet::new();
        loop {
            for task in list.now().values().filter(|task| selected(&selector, task)) {
                if begun.insert(task.id.clone()) {
                    let source = Source { task: Arc::clone(task), subscription: id.clone(), node: config.node_id.clone() };
                    let dir = config.logs_dir.join(task.id.as_str());
                    readers.spawn(one_task(source, dir, query, messages.clone(), engine.clone(), stop.clone()));
                }
            }
            if !query.follow {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                alive = list.changed() => if !alive { break },
                Some(_) = readers.join_next(), if !readers.is_empty() => {}
            }
        }
        while readers.join_next().await.is_some() {}
        // The receiver may be gone with the session.
        let _ = close.send(v1::PublishLogsMessage { subscription_id: id, messages: Vec::new(), close: true }).await;
        Ok::<(), String>(())
    };
    let (sent, read) = tokio::join!(send, read);
    sent.and(read)
}

/// Whose lines they are.
struct Source {
    task: Arc<Task>,
    subscription: String,
    node: String,
}

impl Source {
    fn message(&self, lines: Vec<LogLine>) -> v1::PublishLogsMessage {
        let context = v1::LogContext {
            service_id: self.task.service_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            node_id: self.node.clone(),
            task_id: self.task.id.to_string(),
        };
        let message = |line: LogLine| v1::LogMessage {
            context: Some(context.clone()),
            timestamp: Some(line.time.to_wire()),
            stream: match line.stream {
                LogStream::Stdout => v1::LogStream::Stdout as i32,
                LogStream::Stderr => v1::LogStream::Stderr as i32,
            },
            data: line.data.into(),
            attrs: Vec::new(),
        };
        v1::PublishLogsMessage {
            subscription_id: self.subscription.clone(),
            messages: lines.into_iter().map(message).collect(),
            close: false,
        }
    }
}

/// Sends lines until there are no more, or nobody takes them: then `batches` is closed, which ends its reader.
async fn forward(source: Source, mut batches: mpsc::Receiver<Vec<LogLine>>, messages: mpsc::Sender<v1::PublishLogsMessage>) {
    while let Some(batch) = batches.recv().await {
        let mut part = Vec::new();
        let mut size = 0;
        for line in batch {
            size += line.data.len();
            part.push(line);
            if size >= MESSAGE {
                size = 0;
                if messages.send(source.message(std::mem::take(&mut part))).await.is_err() {
                    return;
                }
            }
        }
        if !part.is_empty() && messages.send(source.message(part)).await.is_err() {
            return;
        }
    }
}

async fn one_task(
    source: Source,
    dir: std::path::PathBuf,
    query: LogQuery,
    messages: mpsc::Sender<v1::PublishLogsMessage>,
    engine: Engine,
    stop: CancellationToken,
) {
    let (lines, batches) = mpsc::channel::<Vec<LogLine>>(4);
    let done = stop.child_token();
    let reading = read_logs(dir, query, lines, done.clone());
    let id = source.task.id.clone();
    // A followed task that ends is read to its end and then left.
    let ending = async {
        if query.follow {
            engine.output_ended(&id).await;
            done.cancel();
        }
    };
    let sending = forward(source, batches, messages);
    let read_and_send = async {
        let (read, ()) = tokio::join!(reading, sending);
        if let Err(error) = read {
            tracing::warn!(task = %id, %error, "could not read a task's output");
        }
    };
    tokio::pin!(read_and_send);
    tokio::select! {
        () = &mut read_and_send => {}
        () = ending => read_and_send.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn options_mean_what_the_wire_says() {
        let all = query(None).unwrap();
        assert!(all.stdout && all.stderr && all.tail == Tail::All && !all.follow);
        let options = v1::LogSubscriptionOptions { streams: vec![2], follow: true, tail: -6, since: None };
        let some = query(Some(options)).unwrap();
        assert_eq!((some.stdout, some.stderr, some.follow, some.tail), (false, true, true, Tail::Last(5)));
        assert_eq!(query(Some(v1::LogSubscriptionOptions { tail: -1, ..Default::default() })).unwrap().tail, Tail::Last(0));
        assert!(query(Some(v1::LogSubscriptionOptions { tail: 3, ..Default::default() })).is_err());
    }

    #[tokio::test]
    async fn a_reader_ends_when_nobody_takes_its_lines() {
        let task = Arc::new(crate::testing::task(1, "busybox"));
        let source = Source { task, subscription: "sub1".into(), node: "node1".into() };
        let (lines, batches) = mpsc::channel(4);
        let (messages, queue) = mpsc::channel(1);
        drop(queue);
        let line = LogLine { time: Timestamp(0), stream: LogStream::Stdout, data: "x\n".into() };
        lines.send(vec![line]).await.unwrap();
        // Both are still here, as they are where they run together.
        let reading = async { lines.closed().await };
        let both = async { tokio::join!(reading, forward(source, batches, messages)) };
        tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    }

    #[test]
    fn a_selector_takes_tasks_by_id_service_or_node() {
        let task = crate::testing::task(1, "busybox");
        let by = |tasks: &[&str], services: &[&str]| v1::LogSelector {
            task_ids: tasks.iter().map(|id| (*id).to_owned()).collect(),
            service_ids: services.iter().map(|id| (*id).to_owned()).collect(),
            node_ids: Vec::new(),
        };
        assert!(selected(&by(&[task.id.as_str()], &[]), &task));
        assert!(selected(&by(&[], &["service1"]), &task));
        assert!(!selected(&by(&["x"], &["y"]), &task));
    }
}
