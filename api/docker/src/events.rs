//! What happens, as it happens.

use crate::Backend;

pub(crate) fn routes() -> axum::Router<Backend> {
    axum::Router::new()
}
