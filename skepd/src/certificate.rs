//! The node's side of certificates: the first one, by a join token, and every later one, by the one before
//! (wire-behaviour 4.2 and 4.5).
//!
//! Start with [`join`] and [`Renewer`]. [`poll`] and [`schedule`] decide and do nothing.

mod dial; // one connection to one manager
mod error; // why there is no certificate
mod join; // the first certificate
mod poll; // what an answer about a certificate means; pure
mod renew; // one renewal
mod renewer; // the task that renews
mod request; // asking and waiting
mod schedule; // when to renew; pure

pub use error::CertificateError;
pub use join::{Invitation, join};
pub use renewer::{Renewer, RenewerParts, RenewerState};
pub use request::somebody_answers;
