//! WireGuard in this process, by a TUN device: for kernels without it.
//!
//! One thread, `skep-wg`, takes requests; below it are two more that carry packets, four queues of at most 4,000 packets per
//! device (`gotatun`'s; what is too much is dropped, as a wire does), and nothing else. All end when [`Userspace`] is dropped, and
//! the devices with them: a TUN device lives as long as somebody has it open.

mod carrier; // one device: WireGuard's state and its packets
mod tun; // packets from and to the TUN device

use super::backend::Tunnels;
use super::device::{Device, DeviceChange, Found};
use super::error::SecureError;
use crate::netlink::route::RouteSocket;
use carrier::Carrier;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;

/// A request changes some tables in memory and binds a socket at most; this only keeps us from waiting for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// What a carrier does to end is a few wake-ups.
const END_WITHIN: Duration = Duration::from_secs(2);
/// One carries packets in while the other carries packets out.
const CARRIERS: usize = 2;

enum Request {
    Read(String, SyncSender<Option<Found>>),
    Make(Device, SyncSender<Result<(), SecureError>>),
    Change(Device, Vec<DeviceChange>, SyncSender<Result<(), SecureError>>),
    Remove(String, SyncSender<()>),
}

/// See the module's description.
pub(super) struct Userspace {
    /// `None` once it ends. One request at a time, so the queue holds one.
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    route: RouteSocket,
}

impl Userspace {
    /// Starts the threads in the network namespace of the calling one.
    pub(super) fn start() -> Result<Self, SecureError> {
        let failed = |source| SecureError::NoTun { source };
        let route = RouteSocket::open().map_err(failed)?;
        let (requests, queue) = mpsc::channel(1);
        let (started, outcome) = sync_channel(1);
        let run = move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(CARRIERS).thread_name("skep-wg-carry").enable_all().build();
            match runtime {
                Err(error) => drop(started.send(Err(error))),
                Ok(runtime) => {
                    drop(started.send(Ok(())));
                    runtime.block_on(serve(queue));
                    runtime.shutdown_timeout(END_WITHIN);
                }
            }
        };
        let thread = std::thread::Builder::new().name("skep-wg".into()).spawn(run).map_err(failed)?;
        outcome.recv_timeout(ANSWER_WITHIN).map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
        Ok(Self { requests: Some(requests), thread: Some(thread), route })
    }

    fn ask<T>(&self, link: &str, request: impl FnOnce(SyncSender<T>) -> Request) -> Result<T, SecureError> {
        let ended = |reason: &str| SecureError::Ended { link: link.to_owned(), reason: reason.to_owned() };
        let (reply, answer): (SyncSender<T>, Receiver<T>) = sync_channel(1);
        let requests = self.requests.as_ref().ok_or_else(|| ended("it was stopped"))?;
        requests.try_send(request(reply)).map_err(|_| ended("its thread takes no requests"))?;
        answer.recv_timeout(ANSWER_WITHIN).map_err(|error| match error {
            RecvTimeoutError::Timeout => ended("its thread does not answer"),
            RecvTimeoutError::Disconnected => ended("its thread is gone"),
        })
    }

    fn delete_link(&mut self, name: &str) -> Result<(), SecureError> {
        let failed = |source| SecureError::Device { link: name.to_owned(), step: "remove", source };
        self.route.delete_link(name).map_err(failed)
    }
}

impl Tunnels for Userspace {
    fn read(&mut self, name: &str) -> Result<Option<Found>, SecureError> {
        let failed = |source| SecureError::Device { link: name.to_owned(), step: "read", source };
        if self.route.link_index(name).map_err(failed)?.is_none() {
            return Ok(None); // somebody deleted it, or it never was
        }
        self.ask(name, |reply| Request::Read(name.to_owned(), reply))
    }

    fn make(&mut self, device: &Device) -> Result<(), SecureError> {
        self.remove(&device.name)?;
        self.ask(&device.name, |reply| Request::Make(device.clone(), reply))?
    }

    fn change(&mut self, device: &Device, changes: &[DeviceChange]) -> Result<(), SecureError> {
        self.ask(&device.name, |reply| Request::Change(device.clone(), changes.to_vec(), reply))?
    }

    fn remove(&mut self, name: &str) -> Result<(), SecureError> {
        self.ask(name, |reply| Request::Remove(name.to_owned(), reply))?;
        // The file is closed when the last task that had it is gone; the name must be free now.
        self.delete_link(name)
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // Ends within `END_WITHIN`; a panic in it was reported when it happened.
            drop(thread.join());
        }
    }
}

/// Until nobody can ask any more.
async fn serve(mut requests: mpsc::Receiver<Request>) {
    let mut carriers: BTreeMap<String, Carrier> = BTreeMap::new();
    while let Some(request) = requests.recv().await {
        // Who went away does not want to hear how it went.
        match request {
            Request::Read(name, reply) => {
                let found = match carriers.get_mut(&name) {
                    Some(carrier) => carrier.read().await,
                    None => None,
                };
                drop(reply.send(found));
            }
            Request::Make(device, reply) => {
                let made = Carrier::make(&device).await;
                drop(reply.send(made.map(|carrier| drop(carriers.insert(device.name, carrier)))));
            }
            Request::Change(device, changes, reply) => {
                let outcome = match carriers.get_mut(&device.name) {
                    Some(carrier) => carrier.change(&device, &changes).await,
                    None => Err(SecureError::Ended { link: device.name, reason: "there is no such device".into() }),
                };
                drop(reply.send(outcome));
            }
            Request::Remove(name, reply) => {
                if let Some(carrier) = carriers.remove(&name) {
                    carrier.stop(END_WITHIN).await;
                }
                let _ = reply.send(());
            }
        }
    }
    for carrier in carriers.into_values() {
        carrier.stop(END_WITHIN).await;
    }
}
