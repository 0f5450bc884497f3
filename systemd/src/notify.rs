//! Messages to the service manager.

use sd_notify::NotifyState;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;

/// Tells the service manager how the daemon is. Cheap to clone; silent when there is no service manager.
///
/// A message that cannot be sent is logged and lost: a daemon does not fail because nobody listens.
#[derive(Debug, Clone)]
pub struct Notifier(Option<Arc<UnixDatagram>>);

impl Notifier {
    /// The socket named by `NOTIFY_SOCKET`, or silence.
    #[must_use]
    pub fn from_env() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::silent() };
        Self::to(&name).unwrap_or_else(|error| {
            tracing::warn!(%error, socket = ?name, "could not reach the service manager; it will not be told anything");
            Self::silent()
        })
    }

    #[must_use]
    pub fn silent() -> Self {
        Self(None)
    }

    /// A socket by path, or by abstract name if it starts with `@` (`sd_notify(3)`).
    pub fn to(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes().split_first() {
            Some((b'@', abstract_name)) => SocketAddr::from_abstract_name(abstract_name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A service manager that does not read must not stop us.
        socket.set_nonblocking(true)?;
        Ok(Self(Some(Arc::new(socket))))
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// The daemon serves. `status` is shown by `systemctl status`.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// The configuration is being read again; [`ready`](Self::ready) must follow.
    pub fn reloading(&self) {
        // systemd 253 and later wants to know since when, by the monotonic clock.
        match NotifyState::monotonic_usec_now() {
            Ok(since) => self.send(&[NotifyState::Reloading, since]),
            Err(error) => tracing::warn!(%error, "could not read the monotonic clock"),
        }
    }

    /// The daemon began to shut down.
    pub fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
    }

    /// Start or stop takes longer: do not give up on us for this long from now.
    pub fn extend_timeout(&self, by: std::time::Duration) {
        let microseconds = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
    }

    pub(crate) fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.0 else { return };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(%error, "the service manager did not take a message");
        }
    }
}

/// A newline would begin another assignment.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::Duration;

    /// A service manager: a datagram socket, and what arrived on it.
    pub(crate) struct FakeManager(UnixDatagram, #[expect(dead_code, reason = "keeps the directory")] tempfile::TempDir);

    impl FakeManager {
        pub(crate) fn start() -> (Self, Notifier) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let notifier = Notifier::to(path.as_os_str()).unwrap();
            (Self(socket, dir), notifier)
        }

        pub(crate) fn hear(&self) -> String {
            let mut buffer = [0; 4096];
            let length = self.0.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        }

        pub(crate) fn hears_nothing(&self) -> bool {
            self.0.set_nonblocking(true).unwrap();
            let silent = matches!(self.0.recv(&mut [0; 64]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            self.0.set_nonblocking(false).unwrap();
            silent
        }
    }

    #[test]
    fn the_service_manager_hears_each_state() {
        let (manager, notifier) = FakeManager::start();
        notifier.ready("leader of 3 managers");
        assert_eq!(manager.hear(), "READY=1\nSTATUS=leader of 3 managers\n");
        notifier.status("two\nlines=1");
        assert_eq!(manager.hear(), "STATUS=two lines=1\n");
        notifier.reloading();
        let reloading = manager.hear();
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        notifier.extend_timeout(Duration::from_secs(30));
        assert_eq!(manager.hear(), "EXTEND_TIMEOUT_USEC=30000000\n");
        notifier.stopping("leaving tasks running");
        assert_eq!(manager.hear(), "STOPPING=1\nSTATUS=leaving tasks running\n");
    }

    #[test]
    fn an_abstract_socket_is_reached_too() {
        let name = format!("skep-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::to(OsStr::new(&format!("@{name}"))).unwrap().ready("here");
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=here\n");
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let notifier = Notifier::silent();
        assert!(!notifier.is_heard());
        notifier.ready("nobody hears it");
        notifier.stopping("nor this");
        assert!(Notifier::to(OsStr::new("/nonexistent/notify")).is_err());
    }

    #[test]
    fn a_service_manager_that_does_not_read_does_not_stop_us() {
        let (_manager, notifier) = FakeManager::start();
        for _ in 0..10_000 {
            notifier.status("flood");
        }
    }
}
