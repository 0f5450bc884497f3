//! Listeners passed by the service manager.

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
use std::env;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use tokio::net::{TcpListener, UnixListener};

/// Why a passed socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the socket {name:?} passed by the service manager cannot be used as a {kind} listener; correct its ListenStream=")]
pub struct SocketError {
    name: String,
    kind: &'static str,
    source: io::Error,
}

/// Sockets opened before the daemon started, known by the `FileDescriptorName=` of their unit. Empty outside systemd.
pub struct PassedSockets {
    fds: ListenFd,
    /// `None` once taken.
    names: Vec<Option<String>>,
}

impl fmt::Debug for PassedSockets {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("PassedSockets").field(&self.unclaimed()).finish()
    }
}

impl PassedSockets {
    /// Takes over what was passed. Call it once, before anything opens files that could be mistaken for them.
    #[must_use]
    pub fn from_env() -> Self {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let fds = ListenFd::from_env();
        let names = names_of(&names, fds.len());
        Self { fds, names }
    }

    /// All Unix listeners of this name.
    pub fn take_unix(&mut self, name: &str) -> Result<Vec<UnixListener>, SocketError> {
        self.take(name, "Unix", |fds, index| {
            let listener = fds.take_unix_listener(index)?.map(listening).transpose()?;
            listener.map(|listener| listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener))).transpose()
        })
    }

    /// All TCP listeners of this name.
    pub fn take_tcp(&mut self, name: &str) -> Result<Vec<TcpListener>, SocketError> {
        self.take(name, "TCP", |fds, index| {
            let listener = fds.take_tcp_listener(index)?.map(listening).transpose()?;
            listener.map(|listener| listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener))).transpose()
        })
    }

    /// Names nobody has taken: the unit passes something we do not know, which the daemon should say.
    #[must_use]
    pub fn unclaimed(&self) -> Vec<&str> {
        self.names.iter().flatten().map(String::as_str).collect()
    }

    fn take<T>(
        &mut self,
        name: &str,
        kind: &'static str,
        mut from: impl FnMut(&mut ListenFd, usize) -> io::Result<Option<T>>,
    ) -> Result<Vec<T>, SocketError> {
        let mut taken = Vec::new();
        for (index, slot) in self.names.iter_mut().enumerate().filter(|(_, slot)| slot.as_deref() == Some(name)) {
            let listener = from(&mut self.fds, index).map_err(|source| SocketError { name: name.to_owned(), kind, source })?;
            taken.extend(listener);
            *slot = None;
        }
        Ok(taken)
    }
}

/// A connection looks like a listener until somebody accepts from it (`Accept=yes` in the unit passes one).
fn listening<T: AsFd>(socket: T) -> io::Result<T> {
    match getsockopt(&socket, AcceptConn)? {
        true => Ok(socket),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen; the unit must not say Accept=yes")),
    }
}

/// `LISTEN_FDNAMES` is separated by colons; a socket without name is called `unknown` (`sd_listen_fds_with_names(3)`).
fn names_of(text: &str, count: usize) -> Vec<Option<String>> {
    let mut names = text.split(':').filter(|name| !name.is_empty());
    (0..count).map(|_| Some(names.next().unwrap_or("unknown").to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn names_are_matched_with_sockets_by_their_order() {
        let names = |text, count| names_of(text, count).into_iter().map(Option::unwrap).collect::<Vec<_>>();
        assert_eq!(names("local:swarm", 2), ["local", "swarm"]);
        assert_eq!(names("local", 2), ["local", "unknown"]);
        assert_eq!(names("", 1), ["unknown"]);
        assert!(names("local", 0).is_empty());
    }

    #[test]
    fn without_systemd_there_are_none() {
        let mut none = PassedSockets { fds: ListenFd::empty(), names: names_of("local", 0) };
        assert!(none.take_unix("local").unwrap().is_empty());
        assert!(none.unclaimed().is_empty());
    }

    #[test]
    fn a_connection_is_no_listener() {
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(listening(near).unwrap_err().to_string().contains("does not listen"));
        let dir = tempfile::tempdir().unwrap();
        listening(std::os::unix::net::UnixListener::bind(dir.path().join("x")).unwrap()).unwrap();
    }

    /// The daemon of the next test: takes its socket, answers one client, ends.
    #[tokio::test]
    #[ignore = "started by a_passed_socket_is_served"]
    async fn child_that_serves_a_passed_socket() {
        use tokio::io::AsyncWriteExt as _;
        let mut passed = PassedSockets::from_env();
        assert!(passed.take_tcp("local").is_err(), "a Unix socket is no TCP socket");
        let listeners = passed.take_unix("local").unwrap();
        assert!(passed.unclaimed().is_empty());
        let (mut client, _) = listeners[0].accept().await.unwrap();
        client.write_all(b"hello").await.unwrap();
    }

    #[test]
    fn a_passed_socket_is_served() {
        let activator = "systemd-socket-activate";
        if Command::new(activator).arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(env::var_os("SKEP_REQUIRE_REAL").is_none(), "{activator} is not installed");
            eprintln!("SKIPPED: {activator} is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("local.sock");
        let mut child = Command::new(activator)
            .arg("-l")
            .arg(&path)
            .arg("--fdname=local")
            .arg(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "sockets::tests::child_that_serves_a_passed_socket"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let mut client = loop {
            match UnixStream::connect(&path) {
                Ok(client) => break client,
                Err(error) if Instant::now() > until => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = String::new();
        let heard = io::Read::read_to_string(&mut client, &mut answer);
        let _ = child.kill();
        let _ = child.wait();
        heard.unwrap();
        assert_eq!(answer, "hello");
    }
}
