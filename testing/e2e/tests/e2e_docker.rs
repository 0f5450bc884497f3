//! The genuine docker command line against our socket: `DOCKER_HOST=unix://…/docker.sock`, and what it shows is what there is.

#[path = "e2e_docker/activation.rs"]
mod activation; // sockets of systemd
#[path = "e2e_docker/box_image.rs"]
mod box_image; // an image with a shell
#[path = "e2e_docker/clients.rs"]
mod clients; // docker-py, Ansible, bollard, dockerode, Prometheus
#[path = "e2e_docker/compose.rs"]
mod compose; // Compose files as people have them
#[path = "e2e_docker/conformance.rs"]
mod conformance; // a list of command lines, to us and to a genuine dockerd
#[path = "e2e_docker/containers.rs"]
mod containers; // docker ps, logs, exec, cp …
#[path = "e2e_docker/fuzz.rs"]
mod fuzz; // requests at random
#[path = "e2e_docker/http.rs"]
mod http; // statuses and bodies that clients rely on
#[path = "e2e_docker/images.rs"]
mod images; // docker save, docker push
#[path = "e2e_docker/likeness.rs"]
mod likeness; // the same specs to us and to a genuine dockerd
#[path = "e2e_docker/nodes.rs"]
mod nodes; // docker swarm …, docker node … of several hosts
#[path = "e2e_docker/objects.rs"]
mod objects; // docker secret …, docker config …, docker network …
#[path = "e2e_docker/places.rs"]
mod places; // docker run --network, docker network connect …
#[path = "e2e_docker/plain.rs"]
mod plain; // docker run -p with ranges, docker cp of what does not run
#[path = "e2e_docker/readers.rs"]
mod readers; // what Traefik and Terraform ask; networks on workers
#[path = "e2e_docker/run.rs"]
mod run; // docker run …
#[path = "e2e_docker/services.rs"]
mod services; // docker service …
#[path = "e2e_docker/stacks.rs"]
mod stacks; // docker stack …
#[path = "e2e_docker/support.rs"]
mod support; // a host, the client
#[path = "e2e_docker/swarms.rs"]
mod swarms; // docker swarm …, docker info of one host
#[path = "e2e_docker/task_commands.rs"]
mod task_commands; // swarmctl task cp, top, port-forward
#[path = "e2e_docker/tls.rs"]
mod tls; // tcp://, with certificates
#[path = "e2e_docker/tutorial.rs"]
mod tutorial; // Docker's own tutorial, as docs/swarm-tutorial.md has it
#[path = "e2e_docker/whole_cluster.rs"]
mod whole_cluster; // docker ps, logs, exec, cp … of containers on other nodes
