//! Who balances: nf_tables or IPVS.

use crate::error::NetlbError;
use crate::ipvs::socket::kernel_has_ipvs;
use std::fmt;
use std::str::FromStr;

/// What spreads connections over tasks. To clients and tasks both are the same; `netlb/docs/ipvs.md` has the few differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LbDriver {
    /// nf_tables. They are needed with IPVS as well, so a kernel that cannot balance with them can with nothing.
    #[default]
    Auto,
    Nftables,
    /// IPVS; refused where the kernel has none.
    Ipvs,
}

impl LbDriver {
    /// Whether it is IPVS that balances. Asks the kernel, in the calling thread's namespace.
    pub(crate) fn is_ipvs(self) -> Result<bool, NetlbError> {
        match self {
            Self::Auto | Self::Nftables => Ok(false),
            Self::Ipvs => kernel_has_ipvs().map(|()| true).map_err(NetlbError::NoIpvs),
        }
    }
}

impl fmt::Display for LbDriver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Auto => "auto",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        })
    }
}

/// No such load balancer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no load balancer {0:?}; it may be auto, nftables or ipvs")]
pub struct NoSuchDriver(String);

impl FromStr for LbDriver {
    type Err = NoSuchDriver;

    fn from_str(text: &str) -> Result<Self, NoSuchDriver> {
        let all = [Self::Auto, Self::Nftables, Self::Ipvs];
        all.into_iter().find(|driver| driver.to_string() == text).ok_or_else(|| NoSuchDriver(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_what_it_says() {
        for driver in [LbDriver::Auto, LbDriver::Nftables, LbDriver::Ipvs] {
            assert_eq!(driver.to_string().parse(), Ok(driver));
        }
        assert!("iptables".parse::<LbDriver>().unwrap_err().to_string().contains("auto, nftables or ipvs"));
    }
}
