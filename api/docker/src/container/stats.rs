//! `/containers/{id}/stats` and `/containers/{id}/top`: what a container uses, and which processes it has.

use super::find;
use crate::body::Json;
use crate::query::Query;
use crate::stream;
use crate::types::common::Time;
use crate::{ApiError, Backend, Usage};
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// What a stream remembers between two looks.
struct Looking {
    backend: Backend,
    id: String,
    name: String,
    before: Usage,
    is_first: bool,
}

impl Looking {
    /// A container that does not run uses nothing.
    async fn look(&mut self) -> Result<Value, ApiError> {
        let usage = self.backend.containers.usage(&self.id).await?.unwrap_or_default();
        let value = json(&self.id, &self.name, &usage, &self.before);
        self.before = usage;
        Ok(value)
    }
}

pub(super) async fn stats(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<Response, ApiError> {
    let is_stream = query.is_or("stream", true);
    let is_one_shot = query.is("one-shot");
    if is_stream && is_one_shot {
        return Err(ApiError::invalid("cannot have stream=true and one-shot=true"));
    }
    let container = find(&backend, &id).await?;
    let mut looking = Looking { backend, id: container.id, name: container.name, before: Usage::default(), is_first: true };
    if is_stream {
        let looks = futures_util::stream::unfold(Some(looking), |looking| async move {
            let mut looking = looking?;
            if !std::mem::take(&mut looking.is_first) {
                tokio::time::sleep(EVERY).await;
            }
            match looking.look().await {
                Ok(value) => Some((Ok(value), Some(looking))),
                // It is there no more: the end of the stream.
                Err(error) if error.is_not_found() => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        return Ok(stream::lines(looks));
    }
    if !is_one_shot {
        // Two looks tell how fast.
        looking.look().await?;
        if looking.before != Usage::default() {
            tokio::time::sleep(EVERY).await;
        }
    }
    Ok(Json(looking.look().await?).into_response())
}

pub(super) async fn top(State(backend): State<Backend>, Path(id): Path<String>, query: Query) -> Result<Json<Value>, ApiError> {
    let container = find(&backend, &id).await?;
    let found = backend.containers.processes(&container.id, query.text("ps_args").unwrap_or("-ef")).await?;
    Ok(Json(json!({ "Titles": found.titles, "Processes": found.rows })))
}

fn cpu(usage: &Usage) -> Value {
    let mut value = json!({
        "cpu_usage": {
            "total_usage": usage.cpu_total,
            "usage_in_kernelmode": usage.cpu_kernel,
            "usage_in_usermode": usage.cpu_user,
        },
        "throttling_data": {
            "periods": usage.periods,
            "throttled_periods": usage.throttled_periods,
            "throttled_time": usage.throttled_time,
        },
    });
    if usage.cpu_system > 0 {
        value["system_cpu_usage"] = json!(usage.cpu_system);
        value["online_cpus"] = json!(usage.cpus);
    }
    value
}

fn memory(usage: &Usage) -> Value {
    if usage.memory_limit == 0 {
        return json!({});
    }
    let mut value = json!({ "usage": usage.memory, "limit": usage.memory_limit, "stats": usage.memory_details });
    if usage.memory_peak > 0 {
        value["max_usage"] = json!(usage.memory_peak);
    }
    if usage.memory_failures > 0 {
        value["failcnt"] = json!(usage.memory_failures);
    }
    value
}

fn json(id: &str, name: &str, usage: &Usage, before: &Usage) -> Value {
    let is_running = usage.cpu_system > 0;
    let block: Vec<Value> =
        usage.block.iter().map(|one| json!({ "major": one.major, "minor": one.minor, "op": one.operation, "value": one.bytes })).collect();
    let mut pids = Map::new();
    if usage.pids > 0 {
        pids.insert("current".into(), json!(usage.pids));
        // Without a limit: the largest number there is, as the daemon reads `max`.
        pids.insert("limit".into(), json!(if usage.pids_limit == 0 { u64::MAX } else { usage.pids_limit }));
    }
    let mut value = json!({
        "name": format!("/{name}"),
        "id": id,
        "read": Time::from(usage.read_at).text(),
        "preread": Time::from(before.read_at).text(),
        "pids_stats": pids,
        "blkio_stats": {
            "io_service_bytes_recursive": if block.is_empty() { Value::Null } else { json!(block) },
            "io_serviced_recursive": null,
            "io_queue_recursive": null,
            "io_service_time_recursive": null,
            "io_wait_time_recursive": null,
            "io_merged_recursive": null,
            "io_time_recursive": null,
            "sectors_recursive": null,
        },
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu(usage),
        "precpu_stats": cpu(before),
        "memory_stats": memory(usage),
    });
    if is_running && !usage.networks.is_empty() {
        let one = |used: &crate::NetworkUsage| {
            json!({
                "rx_bytes": used.rx_bytes,
                "rx_packets": used.rx_packets,
                "rx_errors": used.rx_errors,
                "rx_dropped": used.rx_dropped,
                "tx_bytes": used.tx_bytes,
                "tx_packets": used.tx_packets,
                "tx_errors": used.tx_errors,
                "tx_dropped": used.tx_dropped,
            })
        };
        value["networks"] = Value::Object(usage.networks.iter().map(|(device, used)| (device.clone(), one(used))).collect());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::Timestamp;

    #[test]
    fn clients_find_what_they_compute_with() {
        let before = Usage { read_at: Timestamp::from_secs(1), cpu_total: 10, cpu_system: 100, cpus: 2, ..Usage::default() };
        let mut usage =
            Usage { read_at: Timestamp::from_secs(2), cpu_total: 30, cpu_system: 300, memory: 50, memory_limit: 90, ..before.clone() };
        usage.memory_details.insert("inactive_file".into(), 5);
        let value = json("ab", "web.1", &usage, &before);
        assert_eq!(
            (&value["cpu_stats"]["cpu_usage"]["total_usage"], &value["precpu_stats"]["system_cpu_usage"]),
            (&json!(30), &json!(100))
        );
        assert_eq!(value["memory_stats"], json!({ "usage": 50, "limit": 90, "stats": { "inactive_file": 5 } }));
        assert_eq!((&value["read"], &value["name"]), (&json!("1970-01-01T00:00:02Z"), &json!("/web.1")));
        // One that does not run.
        let nothing = json("ab", "web.1", &Usage::default(), &Usage::default());
        assert_eq!((&nothing["memory_stats"], &nothing["pids_stats"], nothing.get("networks")), (&json!({}), &json!({}), None));
        assert_eq!(nothing["read"], json!("0001-01-01T00:00:00Z"));
    }
}
