//! What a manager says of networks that span nodes, and what this node did about it (`skep.v1.NetworkState`).
//!
//! The stream lives beside the session and never ends it. A manager of another kind does not know of it: then networks end at this
//! node, as they do until the first message.

use super::SessionConfig;
use super::link::MAX_MESSAGE;
use crate::error::chain;
use crate::executor::Network;
use crate::network::{Changes, Following, read_changes};
use skep_failpoint::failpoint;
use skep_proto::NOT_PROGRAMMED;
use skep_proto::skep::network_state_client::NetworkStateClient;
use skep_proto::skep::{self, NetworkHello, NetworkReport};
use skep_types::{NetworkId, TunnelKey};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// After a stream that broke off, or changes that could not be put in place.
const RETRY: Duration = Duration::from_secs(1);
/// Reports on their way: the latest counts, so one is enough.
const REPORTS: usize = 1;

/// Says that nobody tells of other nodes any more, however the stream ends.
struct Followed<'a>(&'a Arc<dyn Network>);

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        self.0.following(Following::Nobody);
    }
}

/// Until dropped.
pub async fn follow(channel: Channel, config: &SessionConfig, network: &Arc<dyn Network>) -> Infallible {
    loop {
        let status = once(channel.clone(), config, network).await;
        if status.code() == Code::Unimplemented {
            tracing::info!("the manager says nothing of networks on other nodes; they end at this one");
            std::future::pending::<()>().await;
        }
        tracing::info!(reason = status.message(), "the stream of network changes ended; asking again");
        tokio::time::sleep(RETRY).await;
    }
}

/// One stream; returns why it ended.
async fn once(channel: Channel, config: &SessionConfig, network: &Arc<dyn Network>) -> Status {
    network.following(Following::Asked);
    let _followed = Followed(network);
    let (reports, queue) = mpsc::channel(REPORTS);
    let data_path_addr = config.data_path_addr.map(|address| address.to_string()).unwrap_or_default();
    let cannot_encrypt = network.can_encrypt().await.err();
    let hello = NetworkHello {
        data_path_addr,
        can_encrypt: cannot_encrypt.is_none(),
        cannot_encrypt: cannot_encrypt.unwrap_or_default(),
        local_prefixes: network.local_prefixes(),
    };
    if reports.try_send(NetworkReport { hello: Some(hello), ..NetworkReport::default() }).is_err() {
        return Status::internal("a queue that was just made is full");
    }
    let mut client = NetworkStateClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut stream = match client.follow(ReceiverStream::new(queue)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return status,
    };
    let (taken, latest) = watch::channel(0);
    let mut known = Known::default();
    let taking = async {
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    let (changes, unclear) = read_changes(message);
                    for why in unclear {
                        tracing::warn!(error = %why, "a part of a manager's message about networks is not understood");
                    }
                    let revision = changes.revision;
                    if let Some(network) = known.stranger(&changes) {
                        return Status::data_loss(format!("it told of a change in network {network}, of which it did not tell before"));
                    }
                    tracing::debug!(revision, complete = changes.complete, networks = changes.networks.len(), "network changes");
                    network.prepare(&changes).await;
                    network.take(changes);
                    network.following(Following::Told);
                    failpoint!("agent.networks.taken");
                    taken.send_replace(revision);
                }
                Ok(None) => return Status::unavailable("the manager ended it"),
                Err(status) => return status,
            }
        }
    };
    tokio::select! {
        status = taking => status,
        () = acknowledge(network, latest, reports.clone()) => Status::unavailable("the manager takes no reports"),
        () = tell_mtu(network, reports) => Status::unavailable("the manager takes no reports"),
    }
}

/// The networks that this stream told of. A change of another one means that something was missed; asking anew brings all of it.
#[derive(Default)]
struct Known(BTreeSet<NetworkId>);

impl Known {
    /// A network of which the message tells a part, though nobody told of it.
    fn stranger(&mut self, changes: &Changes) -> Option<NetworkId> {
        if changes.complete {
            self.0.clear();
        }
        for delta in &changes.networks {
            if delta.removed {
                self.0.remove(&delta.id);
            } else if changes.complete || delta.complete {
                self.0.insert(delta.id.clone());
            } else if !self.0.contains(&delta.id) {
                return Some(delta.id.clone());
            }
        }
        None
    }
}

/// Reports each revision once it is in place, the latest instead of many. Returns when nobody takes reports.
async fn acknowledge(network: &Arc<dyn Network>, mut latest: watch::Receiver<u64>, reports: mpsc::Sender<NetworkReport>) {
    let mut failed = String::new();
    let mut told = Vec::new();
    // The sender lives as long as the stream.
    while latest.changed().await.is_ok() {
        let revision = loop {
            let revision = *latest.borrow_and_update();
            if !tell_keys(network, &mut told, &reports).await {
                return;
            }
            match network.programmed().await {
                Ok(()) => break revision,
                Err(error) => {
                    let words = chain(&error);
                    if words != failed {
                        tracing::warn!(revision, error = words, "network changes are not in place yet");
                        // Once is enough: until an acknowledgement it counts as failing.
                        let is_news = failed.is_empty();
                        failed = words;
                        let report = NetworkReport { programmed: NOT_PROGRAMMED, ..NetworkReport::default() };
                        if is_news && reports.send(report).await.is_err() {
                            return;
                        }
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        failed.clear();
        failpoint!("agent.networks.programmed");
        if reports.send(NetworkReport { programmed: revision, ..NetworkReport::default() }).await.is_err() {
            return;
        }
        // Some may be out of use now.
        if !tell_keys(network, &mut told, &reports).await {
            return;
        }
    }
}

/// Reports what a packet may measure on this node's device towards the others, and when that changes. Returns when nobody takes reports.
async fn tell_mtu(network: &Arc<dyn Network>, reports: mpsc::Sender<NetworkReport>) {
    let mut told = 0;
    loop {
        told = network.underlay_mtu(told).await;
        if reports.send(NetworkReport { underlay_mtu: told, ..NetworkReport::default() }).await.is_err() {
            return;
        }
    }
}

/// Reports the public halves of this node's keys if they are not those that were told; `false` when nobody takes reports. Before
/// what is acknowledged, for managers count on it that who has done what they asked for has told its key.
async fn tell_keys(network: &Arc<dyn Network>, told: &mut Vec<TunnelKey>, reports: &mpsc::Sender<NetworkReport>) -> bool {
    let keys = network.tunnel_keys();
    if keys == *told {
        return true;
    }
    let wire = |key: &TunnelKey| skep::TunnelKey { epoch: key.epoch, public_key: key.public.clone(), port: key.port.into() };
    let list = skep::TunnelKeys { keys: keys.iter().map(wire).collect() };
    *told = keys;
    reports.send(NetworkReport { keys: Some(list), ..NetworkReport::default() }).await.is_ok()
}

#[cfg(test)]
mod tests;
