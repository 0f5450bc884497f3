//! The services `Logs` (for clients) and `LogBroker` (for agents); spec wire-behaviour 21.

mod broker;
mod selection;

pub(crate) use broker::Broker;

use crate::authorize::caller;
use crate::control::errors::invalid;
use crate::shared::Shared;
use broker::{Listener, Publisher, Reader};
use futures_util::stream::{self, BoxStream};
use selection::Selector;
use skep_proto::v1;
use skep_types::{ClusterView as _, FieldError, NodeId, NodeState, SubscriptionId};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status, Streaming};

/// How long lines wait for nodes that are up and do not listen yet.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(3);

/// Carries log lines from agents to clients.
#[derive(Clone)]
pub(crate) struct LogService {
    shared: Arc<Shared>,
}

impl LogService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

fn check_options(options: Option<&v1::LogSubscriptionOptions>) -> Result<(), FieldError> {
    for (index, stream) in options.map_or(&[][..], |options| &options.streams).iter().enumerate() {
        if !matches!(v1::LogStream::try_from(*stream), Ok(v1::LogStream::Stdout | v1::LogStream::Stderr)) {
            let problem = format!("{stream} is not known; use 1 (standard output) or 2 (standard error)");
            return Err(FieldError::new(format!("options.streams[{index}]"), problem));
        }
    }
    Ok(())
}

#[tonic::async_trait]
impl v1::logs_server::Logs for LogService {
    type SubscribeLogsStream = BoxStream<'static, Result<v1::SubscribeLogsMessage, Status>>;

    async fn subscribe_logs(&self, request: Request<v1::SubscribeLogsRequest>) -> Result<Response<Self::SubscribeLogsStream>, Status> {
        let request = request.into_inner();
        let selector = Selector::parse(request.selector.as_ref()).map_err(invalid)?;
        check_options(request.options.as_ref()).map_err(invalid)?;
        let follow = request.options.as_ref().is_some_and(|options| options.follow);
        let (selection, expected) = {
            let view = self.shared.store.view();
            let selection = selector.select(&view, follow);
            let is_up =
                |node: &&NodeId| view.node(node).is_some_and(|node| matches!(node.status.state, NodeState::Ready | NodeState::Unknown));
            let expected = selection.nodes.iter().filter(is_up).cloned().collect();
            (selection, expected)
        };
        if !follow {
            // When managers come back or the leader changes, nodes need a moment to find their way. Those that are down do not come.
            self.shared.broker.all_listen(&expected, ARRIVAL_LIMIT).await;
        }
        let id = SubscriptionId::from_random(rand::random());
        tracing::debug!(subscription = %id, nodes = selection.nodes.len(), follow, "logs subscribed");
        let reader = self.shared.broker.subscribe(id, selector, request, selection);
        skep_failpoint::failpoint!("manager.logs.subscribed");
        let stop = self.shared.stop.clone();
        let lines = stream::unfold(Some((reader, stop)), |state| async move {
            let (mut reader, stop): (Reader, _) = state?;
            let next = tokio::select! {
                next = reader.next() => next,
                () = stop.cancelled() => return Some((Err(Status::unavailable("this manager stops")), None)),
            };
            match next {
                Ok(Some(messages)) => Some((Ok(v1::SubscribeLogsMessage { messages }), Some((reader, stop)))),
                Ok(None) => None,
                Err(problems) => {
                    let text = format!("incomplete log stream; some lines could not be had: {problems}");
                    Some((Err(Status::unknown(text)), None))
                }
            }
        });
        Ok(Response::new(Box::pin(lines)))
    }
}

#[tonic::async_trait]
impl v1::log_broker_server::LogBroker for LogService {
    type ListenSubscriptionsStream = BoxStream<'static, Result<v1::SubscriptionMessage, Status>>;

    async fn listen_subscriptions(
        &self,
        request: Request<v1::ListenSubscriptionsRequest>,
    ) -> Result<Response<Self::ListenSubscriptionsStream>, Status> {
        let node = caller(&request)?.node()?.clone();
        let listener = self.shared.broker.listen(node);
        let stop = self.shared.stop.clone();
        let messages = stream::unfold(Some((listener, stop)), |state| async move {
            let (mut listener, stop): (Listener, _) = state?;
            tokio::select! {
                message = listener.next() => Some((Ok(message), Some((listener, stop)))),
                () = stop.cancelled() => Some((Err(Status::aborted("this manager stops")), None)),
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn publish_logs(&self, request: Request<Streaming<v1::PublishLogsMessage>>) -> Result<Response<v1::PublishLogsResponse>, Status> {
        let node = caller(&request)?.node()?.clone();
        let mut messages = request.into_inner();
        let mut current: Option<(String, Publisher)> = None;
        while let Some(message) = messages.message().await? {
            check_lines(&message, &node)?;
            let publisher = match &mut current {
                Some((id, publisher)) if *id == message.subscription_id => publisher,
                Some(_) => return Err(Status::invalid_argument("subscription_id: must not change within a stream")),
                None => {
                    let id = message.subscription_id.clone();
                    let publisher = self.publisher(&id, &node)?;
                    &mut current.insert((id, publisher)).1
                }
            };
            let client_is_there = publisher.send(message.messages).await;
            if message.close || !client_is_there {
                publisher.close();
                return Ok(Response::new(v1::PublishLogsResponse {}));
            }
        }
        // An orderly end of the stream is an end, too.
        if let Some((_, publisher)) = &mut current {
            publisher.close();
        }
        Ok(Response::new(v1::PublishLogsResponse {}))
    }
}

impl LogService {
    fn publisher(&self, id: &str, node: &NodeId) -> Result<Publisher, Status> {
        if id.is_empty() {
            return Err(Status::invalid_argument("subscription_id: is missing"));
        }
        id.parse()
            .ok()
            .and_then(|id| self.shared.broker.publish(&id, node))
            .ok_or_else(|| Status::not_found(format!("there is no subscription {id}")))
    }
}

/// An agent speaks for its own node only.
fn check_lines(message: &v1::PublishLogsMessage, node: &NodeId) -> Result<(), Status> {
    let foreign = message.messages.iter().filter_map(|line| line.context.as_ref()).find(|context| context.node_id != node.as_str());
    match foreign {
        Some(context) => Err(Status::permission_denied(format!("node {node} cannot publish lines of node {:?}", context.node_id))),
        None => Ok(()),
    }
}
