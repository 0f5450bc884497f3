//! What a registry says of an image.

use crate::Backend;

pub(crate) fn routes() -> axum::Router<Backend> {
    axum::Router::new()
}
