//! IPVS, the kernel's other load balancer, without the ipvsadm program.
//!
//! A *service* is what clients ask for, a *target* is who answers. The kernel calls them virtual service and real server
//! (`include/uapi/linux/ip_vs.h`). Pure here: [`model`]; what to do with it is in `plan::balancer`.

mod encode; // services and targets as messages
pub(crate) mod model; // services and targets as data
pub(crate) mod socket; // speaking to the kernel

pub(crate) use model::{Asked, ServiceChange, Services, Target, TargetState};
pub(crate) use socket::Ipvs;
