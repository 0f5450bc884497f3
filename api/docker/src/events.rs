//! `/events`: what happens, as it happens, and what happened lately. `/system/df`: what all this takes on the disk.

use crate::body::Json;
use crate::filters::Filters;
use crate::query::Query;
use crate::stream;
use crate::when::{moment, now};
use crate::{ApiError, Backend, Happening, container, image, volume};
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde_json::{Value, json};
use skep_types::Timestamp;
use std::time::Duration;

const FILTERS: [&str; 16] = [
    "builder",
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
    "checkpoint",
];

pub(crate) fn routes() -> Router<Backend> {
    Router::new().route("/events", get(events)).route("/system/df", get(usage))
}

/// Longer than any client waits.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

async fn events(State(backend): State<Backend>, query: Query) -> Result<Response, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let at = |name: &str| query.text(name).map(|text| moment(text, now())).transpose();
    let (since, until) = (at("since")?, at("until")?);
    if let (Some(since), Some(until)) = (since, until)
        && until < since
    {
        return Err(ApiError::invalid("`since` time cannot be after `until` time"));
    }
    let (past, live) = backend.happenings.listen().await?;
    let past = past.iter().filter(|one| is_told_again(one.time, since, until) && is_wanted(&filters, one));
    let past: Vec<Result<Value, ApiError>> = past.map(|one| Ok(json(one))).collect();
    let wait = until.map_or(FOREVER, |until| until.since(now()));
    let end = tokio::time::Instant::now() + wait;
    let coming =
        futures_util::stream::unfold((live, filters), move |(mut live, filters): (BoxStream<'static, Happening>, Filters)| async move {
            loop {
                let one = tokio::time::timeout_at(end, live.next()).await.ok()??;
                if is_wanted(&filters, &one) {
                    return Some((Ok(json(&one)), (live, filters)));
                }
            }
        });
    Ok(stream::lines(futures_util::stream::iter(past).chain(coming)))
}

/// Who names neither time wants what comes.
fn is_told_again(time: Timestamp, since: Option<Timestamp>, until: Option<Timestamp>) -> bool {
    (since.is_some() || until.is_some()) && since.is_none_or(|at| time >= at) && until.is_none_or(|at| time <= at)
}

fn is_wanted(filters: &Filters, one: &Happening) -> bool {
    let name = one.attributes.get("name").map(String::as_str).unwrap_or_default();
    // `exec_create: sh` is also an `exec_create`.
    let action = |wanted: &str| one.action == wanted || one.action.split_once(':').is_some_and(|(word, _)| word == wanted);
    let is_called = |wanted: &str| one.id == wanted || (!wanted.is_empty() && one.id.starts_with(wanted)) || name == wanted;
    let of_kind = |kind: &str| !filters.has(kind) || (one.kind == kind && filters.any(kind, is_called));
    let of_image = !filters.has("image")
        || filters.any("image", |wanted| match one.kind {
            "image" => is_called(wanted) || image::familiar(name) == image::familiar(wanted),
            _ => one.attributes.get("image").is_some_and(|image| image == wanted || image::familiar(image) == image::familiar(wanted)),
        });
    filters.is("type", one.kind)
        && filters.any("event", action)
        && filters.is("scope", if one.is_local { "local" } else { "swarm" })
        && filters.labels("label", &one.attributes)
        && ["container", "volume", "network", "service", "node", "secret", "config", "daemon", "plugin"].into_iter().all(of_kind)
        && of_image
}

fn json(one: &Happening) -> Value {
    let mut value = json!({
        "Type": one.kind,
        "Action": one.action,
        "Actor": { "ID": one.id, "Attributes": one.attributes },
        "scope": if one.is_local { "local" } else { "swarm" },
        "time": one.time.parts().0,
        "timeNano": one.time.0,
    });
    // Of old times, for these two only.
    if matches!(one.kind, "container" | "image") {
        value["status"] = json!(one.action);
        value["id"] = json!(one.id);
        if let Some(image) = one.attributes.get("image").filter(|_| one.kind == "container") {
            value["from"] = json!(image);
        }
    }
    value
}

async fn usage(State(backend): State<Backend>, query: Query) -> Result<Json<Value>, ApiError> {
    let kinds: Vec<&str> = query.all("type").collect();
    if let Some(odd) = kinds.iter().find(|kind| !["container", "image", "volume", "build-cache"].contains(kind)) {
        return Err(ApiError::invalid(format!("unknown object type: {odd}")));
    }
    let wants = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let containers = backend.containers.list().await?;
    let mut value = json!({ "BuilderSize": 0 });
    if wants("image") {
        let images = backend.images.list().await?;
        let count = |image: &crate::Image| containers.iter().filter(|one| one.image_id == image.id).count();
        // What images share counts once for each of them: more is not known.
        value["LayersSize"] = json!(images.iter().map(|image| image.size).sum::<u64>());
        value["Images"] = images.iter().map(|image| image::summary(image, Some(count(image)))).collect();
    }
    if wants("container") {
        value["Containers"] = containers.iter().map(|one| container::summary(one, now())).collect();
    }
    if wants("volume") {
        let mut volumes = Vec::new();
        for one in backend.volumes.list().await? {
            let size = backend.volumes.size(&one.name).await.unwrap_or(0);
            volumes.push(volume::json(&one, Some(size)));
        }
        value["Volumes"] = json!(volumes);
    }
    if wants("build-cache") {
        value["BuildCache"] = json!([]);
    }
    Ok(Json(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::Labels;

    fn happening() -> Happening {
        let attributes = [("name", "web.1.x"), ("image", "nginx:1"), ("a", "b")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        Happening {
            kind: "container",
            action: "exec_create: sh -c true".into(),
            id: "abcdef".into(),
            attributes: Labels::from(attributes),
            time: Timestamp(1_500_000_000),
            is_local: true,
        }
    }

    #[test]
    fn filters_are_as_dockerd_s() {
        let holds = |text: &str| is_wanted(&Filters::parse(text, &FILTERS).unwrap(), &happening());
        for good in [
            "{}",
            r#"{"type":["container"],"event":["exec_create"]}"#,
            r#"{"container":["web.1.x"]}"#,
            r#"{"container":["abc"]}"#,
            r#"{"image":["nginx:1"]}"#,
            r#"{"label":["a=b"],"scope":["local"]}"#,
        ] {
            assert!(holds(good), "{good}");
        }
        for bad in [
            r#"{"type":["image"]}"#,
            r#"{"event":["exec"]}"#,
            r#"{"service":["abc"]}"#,
            r#"{"image":["nginx:2"]}"#,
            r#"{"scope":["swarm"]}"#,
        ] {
            assert!(!holds(bad), "{bad}");
        }
    }

    #[test]
    fn the_past_is_told_to_those_who_name_a_time() {
        let told = |since: Option<i64>, until: Option<i64>| is_told_again(Timestamp(5), since.map(Timestamp), until.map(Timestamp));
        assert_eq!([told(None, None), told(Some(5), None), told(None, Some(5)), told(Some(1), Some(9))], [false, true, true, true]);
        assert_eq!([told(Some(6), None), told(None, Some(4)), told(Some(6), Some(9))], [false, false, false]);
    }

    #[test]
    fn records_have_what_old_clients_look_for() {
        let value = json(&happening());
        assert_eq!((&value["status"], &value["from"]), (&json!("exec_create: sh -c true"), &json!("nginx:1")));
        assert_eq!((&value["time"], &value["timeNano"]), (&json!(1), &json!(1_500_000_000)));
        let service = Happening { kind: "service", is_local: false, ..happening() };
        assert!(json(&service).get("status").is_none() && json(&service)["scope"] == json!("swarm"));
    }
}
