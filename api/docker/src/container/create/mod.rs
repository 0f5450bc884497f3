//! `POST /containers/create`: what a client asks for, in the node's words. Whatever this node does nothing for is refused by name.

mod host; // limits, security, networks, restarts
mod mounts; // volumes, binds, tmpfs
mod names; // of containers
mod places; // on networks
mod ports; // published by the node

pub(super) use host::{restart_wish, swap_above};
pub(super) use names::check_name;
pub(crate) use places::place;

use crate::body::{Json, with_status};
use crate::image::find as find_image;
use crate::query::Query;
use crate::types::container_spec::host_name;
use crate::types::create::{CreateBody, Words};
use crate::{ApiError, Backend, Image, NetworkWish, NewContainer};
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;
use skep_types::{ContainerSpec, Labels};
use std::time::Duration;

pub(super) async fn create(State(backend): State<Backend>, query: Query, Json(body): Json<CreateBody>) -> Result<Response, ApiError> {
    let name = match query.text("name") {
        Some(name) => check_name(name)?,
        None => names::any(&backend).await?,
    };
    crate::image::check_platform(&query)?;
    if body.image.is_empty() {
        return Err(ApiError::invalid("no image specified: config cannot be empty in order to create a container"));
    }
    let image = find_image(&backend, &body.image).await?;
    let wants_ports = !body.host_config.port_bindings.is_empty();
    let wish = wish(body, &image, name)?;
    let warnings: &[&str] = match wants_ports && matches!(wish.network, NetworkWish::Host | NetworkWish::None) {
        true => &["Published ports are discarded when using host network mode, and there are none without a network"],
        false => &[],
    };
    let id = backend.containers.create(wish).await?;
    Ok(with_status(StatusCode::CREATED, &json!({ "Id": id, "Warnings": warnings })))
}

/// Entrypoint and command, with what the image says where the client says nothing (moby `runconfig` and `image` merge them so: whoever
/// gives an entrypoint does without the image's command, and an entrypoint of one empty word is none).
fn command(body: &CreateBody, image: &Image) -> (Vec<String>, Vec<String>) {
    let cmd = body.cmd.clone().map(Words::list).unwrap_or_default();
    let entrypoint = body.entrypoint.clone().map(Words::list);
    let of_image = || if cmd.is_empty() { image.config.command.clone() } else { cmd.clone() };
    match entrypoint {
        None => (Vec::new(), cmd),
        Some(words) if words.is_empty() => (of_image(), Vec::new()),
        Some(words) if words == [""] => (cmd, Vec::new()),
        Some(words) => (words, cmd),
    }
}

/// Labels of the image, and the client's over them.
fn labels(body: &CreateBody, image: &Image) -> Labels {
    image.config.labels.clone().into_iter().chain(body.labels.clone()).collect()
}

fn wish(body: CreateBody, image: &Image, name: String) -> Result<NewContainer, ApiError> {
    if let Some((field, value)) = body.unsupported().first() {
        return Err(ApiError::unimplemented(format!("{field} is not supported by this node (asked for: {value}); leave it out")));
    }
    if !body.domainname.is_empty() {
        return Err(ApiError::unimplemented("Domainname is not supported by this node; give a whole name as Hostname"));
    }
    let asked = serde_json::to_string(&body).map_err(|error| ApiError::internal(format!("the request cannot be kept: {error}")))?;
    let invalid = |error: skep_types::FieldError| ApiError::invalid(error.to_string());
    let host = &body.host_config;
    let (network, places) = places::places(&host.network_mode, &body.networking_config)?;
    let (command, args) = command(&body, image);
    let has_command = !command.is_empty() || !args.is_empty() || !image.config.entrypoint.is_empty() || !image.config.command.is_empty();
    if !has_command || body.entrypoint.is_some() && command.is_empty() {
        return Err(ApiError::invalid("no command specified"));
    }
    let spec = ContainerSpec {
        image: body.image.clone(),
        labels: labels(&body, image),
        command,
        args,
        hostname: host_name(body.hostname.clone()).map_err(|error| ApiError::invalid(error.to_string()))?,
        env: body.env.clone(),
        dir: body.working_dir.clone(),
        user: body.user.clone(),
        groups: host.group_add.clone(),
        privileges: host::privileges(&host.security_opt)?,
        init: host.init,
        tty: body.tty,
        open_stdin: body.open_stdin,
        read_only: host.readonly_rootfs,
        stop_signal: body.stop_signal.clone(),
        stop_grace_period: body.stop_timeout.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX >> 32))),
        mounts: mounts::mounts(&body)?,
        hosts: host::hosts(&host.extra_hosts)?,
        dns: host::dns(host),
        healthcheck: body.healthcheck.clone().map(TryInto::try_into).transpose().map_err(invalid)?,
        pids_limit: host.pids_limit.unwrap_or(0),
        sysctls: host.sysctls.clone(),
        capability_add: host.cap_add.clone(),
        capability_drop: host.cap_drop.clone(),
        ulimits: host.ulimits.iter().cloned().map(Into::into).collect(),
        oom_score_adj: host.oom_score_adj,
        ..ContainerSpec::default()
    };
    let names = image.tags.iter().chain(&image.digests);
    let reference = names.clone().find(|name| **name == crate::image::familiar(&body.image)).or_else(|| names.clone().next());
    Ok(NewContainer {
        name,
        spec,
        resources: host::resources(host)?,
        ports: ports::ports(&host.port_bindings, network)?,
        network,
        places,
        log_driver: host::log_driver(&host.log_config),
        reference: reference.cloned().ok_or_else(|| ApiError::conflict(format!("image {} has no name; give it one", body.image)))?,
        restart: restart_wish(&host.restart_policy, host.auto_remove)?,
        auto_remove: host.auto_remove,
        stdin_once: body.stdin_once,
        asked,
    })
}

#[cfg(test)]
mod tests;
