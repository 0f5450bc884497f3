//! Speaking to IPVS in one network namespace.

use super::encode;
use super::model::{Asked, ServiceChange, Services, Target, TargetState};
use crate::netlink::generic::{FIXED, Generic};
use crate::nft::Family;
use crate::sysctl;
use nix::libc;
use std::collections::BTreeMap;
use std::io;

const FAMILY: &str = "IPVS";
const VERSION: u8 = 1;
const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_TARGET: u8 = 5;
const SET_TARGET: u8 = 6;
const DELETE_TARGET: u8 = 7;
const GET_TARGET: u8 = 8;
const SET_CONFIG: u8 = 12;
/// `IPVS_CMD_ATTR_TIMEOUT_TCP`, `…_TCP_FIN`, `…_UDP`, in seconds. A connection may be idle as long as conntrack's own default
/// allows; IPVS's of 15 minutes cuts pools of connections to databases.
const TIMEOUTS: [(u16, u32); 3] = [(4, 5 * 24 * 3600), (5, 120), (6, 120)];

/// IPVS in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Ipvs {
    family: Generic,
}

/// Whether the kernel has IPVS, as a module or built in, with what we need of it.
pub(crate) fn kernel_has_ipvs() -> io::Result<()> {
    Generic::open(FAMILY, VERSION)?;
    sysctl::ipvs_follows_conntrack()
}

impl Ipvs {
    /// Opens it in the calling thread's namespace, and settles there what holds for all services.
    pub(crate) fn open() -> io::Result<Self> {
        let mut family = Generic::open(FAMILY, VERSION)?;
        sysctl::set_for_ipvs()?;
        family.request(SET_CONFIG, |out| {
            for (kind, seconds) in TIMEOUTS {
                out.host_u32(kind, seconds);
            }
        })?;
        Ok(Self { family })
    }

    /// Everything that is there and spreads as ours does.
    pub(crate) fn read(&mut self) -> io::Result<Services> {
        let mut services = Services::new();
        self.family.dump(
            GET_SERVICE,
            |_| {},
            |message| {
                if let Some(asked) = encode::read_service(message.body, FIXED) {
                    services.insert(asked, BTreeMap::new());
                }
            },
        )?;
        for (asked, targets) in &mut services {
            *targets = self.targets(*asked)?;
        }
        Ok(services)
    }

    /// The targets of one service, with what is connected now.
    pub(crate) fn targets(&mut self, of: Asked) -> io::Result<BTreeMap<Target, TargetState>> {
        let mut targets = BTreeMap::new();
        let family: Family = of.family();
        self.family.dump(
            GET_TARGET,
            |out| encode::service(out, of),
            |message| {
                targets.extend(encode::read_target(message.body, FIXED, family));
            },
        )?;
        Ok(targets)
    }

    /// Takes one step. What is there already, or gone already, is no error.
    pub(crate) fn apply(&mut self, change: ServiceChange) -> io::Result<()> {
        let done = match change {
            ServiceChange::Add(of) => match self.family.request(NEW_SERVICE, |out| encode::whole_service(out, of)) {
                // It may have been there, spreading otherwise.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    self.family.request(SET_SERVICE, |out| encode::whole_service(out, of))
                }
                other => other,
            },
            ServiceChange::AddTarget { of, target, open } => self.request_target(NEW_TARGET, of, target, Some(open)),
            ServiceChange::SetTarget { of, target, open } => self.request_target(SET_TARGET, of, target, Some(open)),
            ServiceChange::RemoveTarget { of, target } => self.request_target(DELETE_TARGET, of, target, None),
            ServiceChange::Remove(of) => self.family.request(DELETE_SERVICE, |out| encode::service(out, of)),
        };
        let fine: &[i32] = match change {
            ServiceChange::AddTarget { .. } => &[libc::EEXIST],
            ServiceChange::Add(_) | ServiceChange::SetTarget { .. } => &[],
            ServiceChange::RemoveTarget { .. } | ServiceChange::Remove(_) => &[libc::ENOENT, libc::ESRCH],
        };
        match done {
            Err(error) if error.raw_os_error().is_some_and(|code| fine.contains(&code)) => Ok(()),
            other => other,
        }
    }

    fn request_target(&mut self, command: u8, of: Asked, target: Target, open: Option<bool>) -> io::Result<()> {
        self.family.request(command, |out| {
            encode::service(out, of);
            encode::target(out, target, open);
        })
    }
}
