//! The genuine docker command line against our socket: `DOCKER_HOST=unix://…/docker.sock`, and what it shows is what there is.

#[path = "e2e_docker/http.rs"]
mod http; // statuses and bodies that clients rely on
#[path = "e2e_docker/services.rs"]
mod services; // docker service …
#[path = "e2e_docker/stacks.rs"]
mod stacks; // docker stack …
#[path = "e2e_docker/support.rs"]
mod support; // a host, the client
