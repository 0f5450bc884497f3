//! What is wrong with a service spec, in the order of the original's checks (wire-behaviour 18.2), naming the field and the cure.
//!
//! [`check_service`] looks at the spec alone, [`check_conflicts`] at what else is in the cluster, [`check_change`] at what an update may
//! change, [`advice`] at what is allowed but will disappoint.

mod conflict; // names, ports, secrets that exist or not
mod container; // what the container is made of
mod image; // a compact check of image references
mod service; // the service itself
mod template; // placeholders in env, hostname and mounts
mod text; // NUL bytes, overlong texts and lists, anywhere

pub use conflict::{Conflict, Unsupported, check_change, check_conflicts};
pub use image::check_image;
pub use service::{MAX_REPLICAS, advice, check_name, check_service};
pub use template::check_template;
pub use text::{MAX_LIST, MAX_TEXT, MAX_TOTAL, check_texts};
