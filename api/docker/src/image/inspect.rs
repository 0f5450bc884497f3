//! What there is to know of an image.

use super::find;
use super::find::{pick, repository};
use crate::body::Json;
use crate::filters::Filters;
use crate::query::Query;
use crate::types::common::Time;
use crate::types::container_spec::Healthcheck;
use crate::{ApiError, Backend, Image};
use axum::extract::State;
use serde_json::{Map, Value, json};
use skep_types::Timestamp;

const FILTERS: [&str; 6] = ["before", "dangling", "label", "reference", "since", "until"];

pub(super) async fn list(State(backend): State<Backend>, query: Query) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let all = backend.images.list().await?;
    let made = |key: &str| match filters.values(key) {
        [] => Ok(None),
        [wanted, ..] => pick(&all, wanted).map(|image| Some(image.created_at.unwrap_or_default())),
    };
    let (before, since) = (made("before")?, made("since")?);
    let until = filters.values("until").first().map(|text| crate::when::moment(text, crate::when::now())).transpose()?;
    let dangling = filters.flag("dangling")?;
    let mut found: Vec<Image> = Vec::new();
    for image in &all {
        let at = image.created_at.unwrap_or_default();
        let fits = before.is_none_or(|bound| at < bound)
            && since.is_none_or(|bound| at > bound)
            && until.is_none_or(|bound| at <= bound)
            && dangling.is_none_or(|wanted| wanted == is_dangling(image))
            && filters.labels("label", &image.config.labels);
        if fits && let Some(image) = named(image, &filters) {
            found.push(image);
        }
    }
    found.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    let containers = if query.is("containers") { Some(backend.containers.list().await?) } else { None };
    let count = |image: &Image| containers.as_ref().map(|all| all.iter().filter(|one| one.image_id == image.id).count());
    Ok(Json(found.iter().map(|image| summary(image, count(image))).collect()))
}

pub(super) fn is_dangling(image: &Image) -> bool {
    image.tags.is_empty() && image.digests.is_empty()
}

/// The image with those of its names that are asked for; `None` if none of them is.
fn named(image: &Image, filters: &Filters) -> Option<Image> {
    if !filters.has("reference") {
        return Some(image.clone());
    }
    let fits = |name: &String| filters.any("reference", |pattern| matches(pattern, name));
    let tags: Vec<String> = image.tags.iter().filter(|name| fits(name)).cloned().collect();
    let digests: Vec<String> = image.digests.iter().filter(|name| fits(name)).cloned().collect();
    (!tags.is_empty() || !digests.is_empty()).then(|| Image { tags, digests, ..image.clone() })
}

/// As Go's `path.Match` with the name, or with the repository alone: `*` and `?` within one part.
fn matches(pattern: &str, name: &str) -> bool {
    glob(pattern.as_bytes(), name.as_bytes()) || glob(pattern.as_bytes(), repository(name).as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            let reach = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            (0..=reach).any(|taken| glob(rest, &text[taken..]))
        }
        ([b'?', rest @ ..], [byte, tail @ ..]) => *byte != b'/' && glob(rest, tail),
        ([first, rest @ ..], [byte, tail @ ..]) => first == byte && glob(rest, tail),
        _ => false,
    }
}

/// `containers`: how many were made from it, if that was asked for.
pub(crate) fn summary(image: &Image, containers: Option<usize>) -> Value {
    json!({
        "Id": image.id,
        "ParentId": "",
        "RepoTags": image.tags,
        "RepoDigests": image.digests,
        "Created": image.created_at.unwrap_or_default().parts().0,
        "Size": image.size,
        "SharedSize": -1,
        "Labels": if image.config.labels.is_empty() { Value::Null } else { json!(image.config.labels) },
        "Containers": containers.map_or(json!(-1), |count| json!(count)),
    })
}

pub(super) async fn inspect(backend: &Backend, name: &str, query: &Query) -> Result<Json<Value>, ApiError> {
    if query.is("manifests") {
        return Err(ApiError::unimplemented("this node shows the image of its own platform only; leave `manifests` out"));
    }
    Ok(Json(json(&find(backend, name).await?)))
}

fn list_or_null(values: &[String]) -> Value {
    if values.is_empty() { Value::Null } else { json!(values) }
}

fn set(values: &[String]) -> Value {
    if values.is_empty() {
        Value::Null
    } else {
        Value::Object(values.iter().map(|value| (value.clone(), json!({}))).collect::<Map<_, _>>())
    }
}

fn json(image: &Image) -> Value {
    let settings = &image.config;
    let mut config = json!({
        "Hostname": "",
        "Domainname": "",
        "User": settings.user,
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "Tty": false,
        "OpenStdin": false,
        "StdinOnce": false,
        "Env": list_or_null(&settings.env),
        "Cmd": list_or_null(&settings.command),
        "Image": "",
        "Volumes": set(&settings.volumes),
        "WorkingDir": settings.working_dir,
        "Entrypoint": list_or_null(&settings.entrypoint),
        "OnBuild": null,
        "Labels": if settings.labels.is_empty() { Value::Null } else { json!(settings.labels) },
    });
    if !settings.exposed_ports.is_empty() {
        config["ExposedPorts"] = set(&settings.exposed_ports);
    }
    if !settings.stop_signal.is_empty() {
        config["StopSignal"] = json!(settings.stop_signal);
    }
    if let Some(check) = &settings.health {
        config["Healthcheck"] = json!(Healthcheck::from(check));
    }
    let mut value = json!({
        "Id": image.id,
        "RepoTags": image.tags,
        "RepoDigests": image.digests,
        "Parent": "",
        "Comment": "",
        "DockerVersion": "",
        "Author": image.author,
        "Config": config,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": { "Data": null, "Name": "overlayfs" },
        "RootFS": { "Type": "layers", "Layers": image.layers },
        "Metadata": { "LastTagTime": Time(None).text() },
    });
    if let Some(at) = image.created_at {
        value["Created"] = json!(Time::from(at).text());
    }
    if !image.variant.is_empty() {
        value["Variant"] = json!(image.variant);
    }
    value
}

pub(super) async fn history(backend: &Backend, name: &str) -> Result<Json<Vec<Value>>, ApiError> {
    let image = find(backend, name).await?;
    let mut sizes = image.layer_sizes.iter();
    let mut entries: Vec<Value> = image
        .history
        .iter()
        .map(|entry| {
            json!({
                "Id": "<missing>",
                "Created": entry.created_at.map_or(0, |at: Timestamp| at.parts().0),
                "CreatedBy": entry.created_by,
                "Tags": null,
                "Size": if entry.is_empty_layer { 0 } else { sizes.next().copied().unwrap_or(0) },
                "Comment": entry.comment,
            })
        })
        .collect();
    if let Some(last) = entries.last_mut() {
        last["Id"] = json!(image.id);
        last["Tags"] = list_or_null(&image.tags);
    }
    entries.reverse();
    Ok(Json(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_go_s() {
        for (pattern, name) in [("nginx", "nginx:1"), ("ngi*", "nginx:1"), ("*:1", "nginx:1"), ("a/*", "a/b:2"), ("n?inx:1", "nginx:1")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*", "a/b:2"), ("ngin", "nginx:1"), ("nginx:2", "nginx:1")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
