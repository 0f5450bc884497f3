//! Asks resolvers for foreign names.
//!
//! Against forged answers (RFC 5452): a socket of its own per question, connected, so the kernel picks a random port and hands
//! over only what comes from the resolver; a random id; the question in the answer must be the one that was asked.

use super::cache::{Asked, Cache};
use super::counters::Counters;
use super::foreign::{Foreign, Received};
use super::limits::DnsLimits;
use super::query::OUR_PAYLOAD;
use super::socket::Place;
use super::upstream::{AskFrom, Health, Resolver};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

/// Each resolver twice: the first packet may get lost.
const ROUNDS: usize = 2;

/// What all tasks' questions for foreign names share.
#[derive(Debug)]
pub(super) struct Forwarder {
    cache: Mutex<Cache>,
    health: Mutex<Health>,
    counters: Arc<Counters>,
    patience: Duration,
    patience_in_all: Duration,
}

/// Why a resolver gave no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("could not reach it")]
    Io(#[from] io::Error),
    #[error("it did not answer in time")]
    TooLate,
}

impl Forwarder {
    pub(super) fn new(limits: &DnsLimits, counters: Arc<Counters>) -> Self {
        let DnsLimits { remembered, patience, patience_in_all, .. } = *limits;
        Self { cache: Mutex::new(Cache::new(remembered)), health: Mutex::default(), counters, patience, patience_in_all }
    }

    /// An answer from before, if there is one. Does not wait.
    pub(super) fn remembered(&self, foreign: &Foreign, asked: &Asked) -> Option<Vec<u8>> {
        let (received, age) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(asked, Instant::now().into_std())?;
        Some(foreign.reply(&received, age))
    }

    /// Asks one resolver after the other; SERVFAIL if none answers in time.
    pub(super) async fn ask(&self, foreign: &Foreign, asked: Asked, place: &Place) -> Vec<u8> {
        let Some(received) = self.receive(foreign, &asked.resolvers, place).await else {
            self.counters.failed.add(1);
            return foreign.failure();
        };
        let received = Arc::new(received);
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(asked, received.clone(), Instant::now().into_std());
        foreign.reply(&received, Duration::ZERO)
    }

    /// The first answer that settles it, else what comes nearest to one.
    async fn receive(&self, foreign: &Foreign, resolvers: &[Resolver], place: &Place) -> Option<Received> {
        let end = Instant::now() + self.patience_in_all;
        let order = self.health(|health, now| health.order(resolvers, now));
        let mut second_best = None;
        for _ in 0..ROUNDS {
            for resolver in &order {
                if Instant::now() >= end {
                    return second_best;
                }
                match self.ask_one(foreign, *resolver, place, end).await {
                    Ok(received) => {
                        self.health(|health, _| health.answered(*resolver));
                        if received.is_final() && !received.is_truncated() {
                            return Some(received);
                        }
                        // It refuses, or has troubles of its own: another may do better.
                        second_best.get_or_insert(received);
                    }
                    Err(error) => {
                        debug!(resolver = %resolver.address, %error, "no answer");
                        self.health(|health, now| health.failed(*resolver, now));
                    }
                }
            }
            // Those that answered would say the same again.
            if second_best.is_some() {
                return second_best;
            }
        }
        None
    }

    fn health<T>(&self, work: impl FnOnce(&mut Health, std::time::Instant) -> T) -> T {
        work(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner), Instant::now().into_std())
    }

    /// Over UDP, and over TCP if the answer is too long for that. A long answer that cannot be had is the short one.
    async fn ask_one(&self, foreign: &Foreign, resolver: Resolver, place: &Place, end: Instant) -> Result<Received, AskError> {
        let until = || end.min(Instant::now() + self.patience);
        let received = timeout_at(until(), ask_udp(foreign, resolver, place)).await.map_err(|_| AskError::TooLate)??;
        if !received.is_truncated() {
            return Ok(received);
        }
        match timeout_at(until(), ask_tcp(foreign, resolver, place)).await {
            Ok(Ok(whole)) => Ok(whole),
            Ok(Err(error)) => {
                debug!(resolver = %resolver.address, %error, "no answer over tcp");
                Ok(received)
            }
            Err(_) => Ok(received),
        }
    }
}

async fn ask_udp(foreign: &Foreign, resolver: Resolver, place: &Place) -> io::Result<Received> {
    let any = match resolver.address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let open = move || -> io::Result<std::net::UdpSocket> {
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let socket = UdpSocket::from_std(from(resolver, place, open).await?)?;
    socket.connect(resolver.address).await?;
    let id = rand::random();
    socket.send(&foreign.query(id)).await?;
    // No resolver sends more than it was told we take; what is cut off is no answer.
    let mut buffer = vec![0; usize::from(OUR_PAYLOAD)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match foreign.check(id, &buffer[..length]) {
            Ok(received) => return Ok(received),
            // Perhaps somebody guesses. The right one may still come.
            Err(unfit) => debug!(resolver = %resolver.address, %unfit, "an answer was thrown away"),
        }
    }
}

async fn ask_tcp(foreign: &Foreign, resolver: Resolver, place: &Place) -> io::Result<Received> {
    let is_v4 = resolver.address.is_ipv4();
    let socket = from(resolver, place, move || if is_v4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() }).await?;
    let mut stream = socket.connect(resolver.address).await?;
    let id = rand::random();
    let query = foreign.query(id);
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    foreign.check(id, &bytes).map_err(io::Error::other)
}

/// Opens a socket where the resolver is to be asked from.
async fn from<T: Send + 'static>(
    resolver: Resolver,
    place: &Place,
    open: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match resolver.from {
        AskFrom::Host => open(),
        AskFrom::Task => place.within(open).await?,
    }
}
