//! What of a container can be changed: its name, its limits, when it is started again.

use super::create::{check_name, restart_wish, swap_above};
use super::find;
use crate::body::Json;
use crate::query::Query;
use crate::types::create::{CreateBody, HostConfig};
use crate::{ApiError, Backend, ContainerUpdate};
use axum::extract::{Path, State};
use http::StatusCode;
use serde_json::{Value, json};

pub(super) async fn rename(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<StatusCode, ApiError> {
    let container = find(&backend, &id).await?;
    if container.is_task {
        return Err(ApiError::unimplemented("the name of a task's container says which task it is and cannot be changed"));
    }
    let name = query.text("name").ok_or_else(|| ApiError::invalid("Neither old nor new names may be empty"))?;
    let name = check_name(name)?;
    if name == container.name {
        return Err(ApiError::invalid(format!("Renaming a container with the same name as its current name: {name}")));
    }
    backend.containers.rename(&container.id, &name).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn update(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    Json(wish): Json<HostConfig>,
) -> Result<Json<Value>, ApiError> {
    let container = find(&backend, &id).await?;
    let Some(plain) = container.plain.as_ref().filter(|_| !container.is_task) else {
        return Err(ApiError::unimplemented("the limits of a task's container are its service's; use `docker service update`"));
    };
    let asked: CreateBody = serde_json::from_str(&plain.asked).unwrap_or_default();
    let (update, host) = plan(&wish, asked.host_config.clone())?;
    let asked = serde_json::to_string(&CreateBody { host_config: host, ..asked });
    let asked = asked.map_err(|error| ApiError::internal(format!("the request cannot be kept: {error}")))?;
    backend.containers.update(&container.id, ContainerUpdate { asked, ..update }).await?;
    Ok(Json(json!({ "Warnings": [] })))
}

/// What changes, and the host's part of what is asked for from then on. Zero says nothing.
fn plan(wish: &HostConfig, mut host: HostConfig) -> Result<(ContainerUpdate, HostConfig), ApiError> {
    if let Some((field, value)) = wish.unsupported().first() {
        return Err(ApiError::unimplemented(format!("{field} is not supported by this node (asked for: {value}); leave it out")));
    }
    let mut update = ContainerUpdate::default();
    if wish.nano_cpus != 0 {
        update.nano_cpus = Some(wish.nano_cpus);
        (host.nano_cpus, host.cpu_quota, host.cpu_period) = (wish.nano_cpus, 0, 0);
    }
    if wish.cpu_quota != 0 || wish.cpu_period != 0 {
        return Err(ApiError::unimplemented(
            "CpuQuota and CpuPeriod of a running container are not changed by this node; use NanoCpus (--cpus)",
        ));
    }
    if wish.memory != 0 || wish.memory_swap != 0 {
        host.memory = if wish.memory != 0 { wish.memory } else { host.memory };
        host.memory_swap = if wish.memory_swap != 0 { wish.memory_swap } else { host.memory_swap };
        if wish.memory_swap == 0 && host.memory_swap > 0 && host.memory > host.memory_swap {
            return Err(ApiError::conflict(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
            ));
        }
        update.memory_bytes = Some(host.memory);
        update.swap_bytes = swap_above(host.memory, host.memory_swap)?;
    }
    if let Some(limit) = wish.pids_limit.filter(|limit| *limit != 0) {
        (update.pids_limit, host.pids_limit) = (Some(limit), Some(limit));
    }
    if !wish.restart_policy.name.is_empty() {
        if host.auto_remove && wish.restart_policy.name != "no" {
            return Err(ApiError::invalid("Restart policy cannot be updated because AutoRemove is enabled for the container"));
        }
        update.restart = Some(restart_wish(&wish.restart_policy, false)?);
        host.restart_policy = wish.restart_policy.clone();
    }
    Ok((update, host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RestartWish;
    use crate::types::create::RestartPolicy;

    #[test]
    fn what_is_not_said_stays() {
        let before = HostConfig { memory: 100, memory_swap: 200, ..HostConfig::default() };
        let always = RestartPolicy { name: "always".into(), ..RestartPolicy::default() };
        let wish = HostConfig { memory: 150, restart_policy: always, ..HostConfig::default() };
        let (update, after) = plan(&wish, before.clone()).unwrap();
        assert_eq!((update.memory_bytes, update.swap_bytes, update.nano_cpus), (Some(150), Some(50), None));
        assert_eq!((update.restart, after.memory, after.memory_swap), (Some(RestartWish::Always), 150, 200));
        assert!(plan(&HostConfig { memory: 300, ..HostConfig::default() }, before).is_err());
        let odd = HostConfig { cpu_shares: json!(5), ..HostConfig::default() };
        assert_eq!(plan(&odd, HostConfig::default()).unwrap_err().status(), 501);
    }
}
