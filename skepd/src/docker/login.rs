//! Whether a registry takes credentials.

use skep_docker_api::{ApiError, ErrorKind, Login};
use skep_images::{Auth, HttpRegistry, RegistryConfig, RegistryError};

/// Docker Hub, under which name clients keep its credentials.
const HUB: &str = "docker.io";

/// The host of a registry, as clients name it: with scheme, with a path, or none at all.
fn host(server: &str) -> &str {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" => HUB,
        host => host,
    }
}

/// Logs in and forgets it: clients keep their credentials themselves.
pub async fn check(insecure: &[String], login: Login) -> Result<(), ApiError> {
    let registry = HttpRegistry::new(RegistryConfig { insecure: insecure.to_vec() });
    let auth = Auth::password(login.username, login.password.0);
    registry.log_in(host(&login.server), &auth).await.map_err(|error| match error {
        RegistryError::Unauthorised { .. } | RegistryError::AccessDenied { .. } => {
            ApiError::new(ErrorKind::Unauthenticated, "unauthorized: incorrect username or password")
        }
        other => ApiError::internal(crate::agent::chain(&other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_found_in_every_way_to_write_it() {
        for hub in ["", "https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"] {
            assert_eq!(host(hub), "docker.io", "{hub}");
        }
        assert_eq!([host("http://localhost:5000/v2/"), host("r.example")], ["localhost:5000", "r.example"]);
    }
}
