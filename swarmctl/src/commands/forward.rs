//! `task port-forward`: ports of this machine that lead into a task, on whatever node it is.

use super::visit::{Visit, lost, nothing};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output;
use http::Method;
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub const HELP: &str = "\
The program in the task is reached as from its own loopback address: it need not publish the port. TCP only. Goes on until it is
interrupted, or the task is gone.";

/// Connections of one port; each is a tunnel, of which managers allow so many.
const AT_ONCE: usize = 32;

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct ForwardFlags {
    /// Address of this machine to listen at
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    address: IpAddr,
    /// Task: id, or name such as web.1
    task: String,
    /// Port of the task; in front of it, with a colon, the port here if it is another one (0: any that is free)
    #[arg(required = true, value_name = "[LOCAL:]PORT")]
    ports: Vec<Pair>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    here: u16,
    there: u16,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (here, there) = text.split_once(':').unwrap_or((text, text));
        let number =
            |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port; write one from 1 to 65535, such as 8080:80"));
        let pair = Self { here: number(here)?, there: number(there)? };
        if pair.there == 0 { Err("a task has no port 0".into()) } else { Ok(pair) }
    }
}

pub async fn run(flags: ForwardFlags, connection: &Connection) -> Result<(), Failure> {
    let visit = Visit::to(connection, &flags.task).await?;
    let mut listeners = Vec::new();
    for pair in &flags.ports {
        let at = SocketAddr::new(flags.address, pair.here);
        let listener = TcpListener::bind(at).await.map_err(|error| Failure::failed(format!("cannot listen at {at}: {error}")))?;
        let at = listener.local_addr()?;
        output::put(&format!("{at} -> {}\n", pair.there))?;
        listeners.push((listener, pair.there));
    }
    tokio::select! {
        () = serve(listeners, &visit) => Err(Failure::failed("no connection can be taken any more")),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Takes connections until no port can any more.
async fn serve(listeners: Vec<(TcpListener, u16)>, visit: &Visit) {
    let mut ports = JoinSet::new();
    for (listener, port) in listeners {
        let visit = visit.again();
        ports.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while clients.try_join_next().is_some() {}
                if clients.len() >= AT_ONCE {
                    eprintln!("swarmctl: port {port}: {AT_ONCE} connections are open, which is as many as may be");
                    continue;
                }
                clients.spawn(carry(visit.again(), client, port));
            }
        });
    }
    while ports.join_next().await.is_some() {}
}

async fn carry(mut visit: Visit, mut client: TcpStream, port: u16) {
    let outcome = async {
        let path = visit.path(&format!("forward?port={port}"));
        let answer = visit.send(Method::POST, &path, nothing(), true).await?;
        let mut there = TokioIo::new(hyper::upgrade::on(answer).await.map_err(lost)?);
        // Either end may break off, as it may without us.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut there).await;
        Ok::<_, Failure>(())
    };
    if let Err(failure) = outcome.await {
        eprintln!("swarmctl: port {port}: {failure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let pair = |text: &str| text.parse::<Pair>();
        assert_eq!(pair("80"), Ok(Pair { here: 80, there: 80 }));
        assert_eq!(pair("0:80"), Ok(Pair { here: 0, there: 80 }));
        for bad in ["", "0", "80:0", "80:", "x:80", "80:70000", "1:2:3"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }
}
