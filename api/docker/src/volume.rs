//! Volumes of this node.

use crate::Backend;

pub(crate) fn routes() -> axum::Router<Backend> {
    axum::Router::new()
}
