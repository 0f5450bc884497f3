//! By what WireGuard is done: one contract, two that keep it.

use super::device::{Device, DeviceChange, Found};
use super::error::SecureError;
use super::kernel::Kernel;
use super::userspace::Userspace;
use super::wanted::Driver;
use crate::sysctl;
use std::fs::OpenOptions;
use std::io;

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Packets flow whether or not this process lives.
    Kernel,
    /// Packets flow while this process lives.
    Userspace,
}

/// What does WireGuard in this network namespace. Every call may be repeated; each blocks for milliseconds.
pub(crate) trait Tunnels: Send {
    /// The device of that name, if there is one of ours.
    fn read(&mut self, name: &str) -> Result<Option<Found>, SecureError>;
    /// Makes the device, still down and without a key; in the place of any link of that name that is none of ours.
    fn make(&mut self, device: &Device) -> Result<(), SecureError>;
    /// Carries out the steps in order.
    fn change(&mut self, device: &Device, changes: &[DeviceChange]) -> Result<(), SecureError>;
    /// Removes the device; one that is not there is no error.
    fn remove(&mut self, name: &str) -> Result<(), SecureError>;
}

/// Whether this node can encrypt, and by what; if not, why, in words for whoever wonders why it gets no tasks of encrypted
/// networks. Loads the kernel's module if there is one. Blocks for milliseconds.
pub fn can_encrypt(driver: Driver) -> Result<Backend, SecureError> {
    check_ipv6()?;
    choose(driver, Kernel::is_there(), tun_is_there())
}

/// The tunnels' own addresses are of IPv6, whatever the hosts and the networks use.
pub(crate) fn check_ipv6() -> Result<(), SecureError> {
    let why = "the tunnels speak IPv6, and the kernel has none; boot it without ipv6.disable=1";
    if sysctl::kernel_has_ipv6() { Ok(()) } else { Err(SecureError::Bad(why.into())) }
}

/// Pure: what is used, from what is asked and what is there.
fn choose(driver: Driver, kernel: io::Result<()>, tun: io::Result<()>) -> Result<Backend, SecureError> {
    match (driver, kernel, tun) {
        (Driver::Auto | Driver::Kernel, Ok(()), _) => Ok(Backend::Kernel),
        (Driver::Auto | Driver::Userspace, _, Ok(())) => Ok(Backend::Userspace),
        (Driver::Kernel, Err(source), _) => Err(SecureError::NoKernel { source }),
        (Driver::Userspace, _, Err(source)) => Err(SecureError::NoTun { source }),
        (Driver::Auto, Err(kernel), Err(tun)) => Err(SecureError::Unable { kernel, tun }),
    }
}

/// A device comes with a name only: to open the file changes nothing.
fn tun_is_there() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(drop)
}

/// Begins with what was chosen.
pub(crate) fn start(driver: Driver) -> Result<(Backend, Box<dyn Tunnels>), SecureError> {
    let backend = can_encrypt(driver)?;
    let tunnels: Box<dyn Tunnels> = match backend {
        Backend::Kernel => Box::new(Kernel::open()?),
        Backend::Userspace => Box::new(Userspace::start()?),
    };
    Ok((backend, tunnels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_comes_first_and_what_is_asked_for_is_not_replaced() {
        let no = || Err(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(choose(Driver::Auto, Ok(()), Ok(())).unwrap(), Backend::Kernel);
        assert_eq!(choose(Driver::Auto, no(), Ok(())).unwrap(), Backend::Userspace);
        assert_eq!(choose(Driver::Userspace, Ok(()), Ok(())).unwrap(), Backend::Userspace);
        assert_eq!(choose(Driver::Kernel, Ok(()), no()).unwrap(), Backend::Kernel);
        assert!(matches!(choose(Driver::Kernel, no(), Ok(())), Err(SecureError::NoKernel { .. })));
        assert!(matches!(choose(Driver::Userspace, Ok(()), no()), Err(SecureError::NoTun { .. })));
        let why = choose(Driver::Auto, no(), no()).unwrap_err().to_string();
        assert!(why.contains("cannot encrypt") && why.contains("modul"), "{why}");
    }
}
