//! `/containers/json`.

use super::summary::{health, state, summary};
use crate::body::Json;
use crate::filters::Filters;
use crate::query::Query;
use crate::tasks_only::TasksOnly;
use crate::when::now;
use crate::{ApiError, Backend, Container, Phase};
use axum::Extension;
use axum::extract::State;
use serde_json::Value;

const FILTERS: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATES: [&str; 7] = ["created", "dead", "exited", "paused", "removing", "restarting", "running"];

pub(super) async fn list(
    State(backend): State<Backend>,
    of_tasks: Option<Extension<TasksOnly>>,
    query: Query,
) -> Result<Json<Vec<Value>>, ApiError> {
    let wanted = Wanted::of(&query)?;
    let mut all = backend.containers.list().await?;
    all.retain(|one| one.is_task || of_tasks.is_none());
    let now = now();
    Ok(Json(wanted.select(all)?.iter().map(|one| summary(one, now)).collect()))
}

/// Which containers a client wants to see.
pub(crate) struct Wanted {
    filters: Filters,
    limit: Option<usize>,
    /// Not the running ones only.
    all: bool,
}

impl Wanted {
    /// # Errors
    /// Names the parameter that cannot be.
    pub(crate) fn of(query: &Query) -> Result<Self, ApiError> {
        let filters = query.filters(&FILTERS)?;
        check(&filters)?;
        super::no_sizes(query)?;
        let limit = query.number::<i64>("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
        // Whoever names a state or wants the last ones does not mean the running ones only.
        let all = query.is("all") || filters.has("status") || filters.has("exited") || limit.is_some();
        Ok(Self { filters, limit, all })
    }

    /// Whether it depends on when another container was made.
    pub(crate) fn names_another(&self) -> bool {
        self.filters.has("before") || self.filters.has("since")
    }

    /// At most so many.
    pub(crate) fn limit(&self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }

    /// Those of them, the newest first.
    ///
    /// # Errors
    /// If a filter names a container that is not there.
    pub(crate) fn select(&self, mut all: Vec<Container>) -> Result<Vec<Container>, ApiError> {
        all.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        let bounds = Bounds::of(&self.filters, &all)?;
        all.retain(|one| {
            let is_meant = self.all || matches!(one.life.phase, Phase::Running | Phase::Paused);
            is_meant && is_wanted(&self.filters, one) && bounds.hold(one)
        });
        all.truncate(self.limit());
        Ok(all)
    }
}

fn check(filters: &Filters) -> Result<(), ApiError> {
    if let Some(odd) = filters.values("status").iter().find(|word| !STATES.contains(&word.as_str())) {
        return Err(ApiError::invalid(format!("invalid filter 'status={odd}'")));
    }
    if let Some(odd) = filters.values("exited").iter().find(|code| code.parse::<i32>().is_err()) {
        return Err(ApiError::invalid(format!("invalid filter 'exited={odd}'")));
    }
    if let Some(odd) = filters.values("health").iter().find(|word| !["starting", "healthy", "unhealthy", "none"].contains(&word.as_str())) {
        return Err(ApiError::invalid(format!("invalid filter 'health={odd}'")));
    }
    filters.flag("is-task").map(drop)
}

/// Made before one container and since another.
struct Bounds {
    before: Option<skep_types::Timestamp>,
    since: Option<skep_types::Timestamp>,
}

impl Bounds {
    fn of(filters: &Filters, all: &[Container]) -> Result<Self, ApiError> {
        let made = |key: &str| match filters.values(key) {
            [] => Ok(None),
            [wanted, ..] => {
                let found = all.iter().find(|one| one.id.starts_with(wanted.as_str()) || one.name == wanted.trim_start_matches('/'));
                found.map(|one| Some(one.created_at)).ok_or_else(|| ApiError::not_found(format!("No such container: {wanted}")))
            }
        };
        Ok(Self { before: made("before")?, since: made("since")? })
    }

    fn hold(&self, one: &Container) -> bool {
        self.before.is_none_or(|at| one.created_at < at) && self.since.is_none_or(|at| one.created_at > at)
    }
}

fn is_wanted(filters: &Filters, one: &Container) -> bool {
    let name = |wanted: &str| one.name.contains(wanted.trim_start_matches(['/', '^']).trim_end_matches('$'));
    let exact_or_part = |wanted: &str| match wanted.strip_prefix('^').and_then(|text| text.strip_suffix('$')) {
        Some(exact) => one.name == exact.trim_start_matches('/'),
        None => name(wanted),
    };
    let image = |wanted: &str| is_image(one, wanted);
    let network = |wanted: &str| one.networks.iter().any(|end| end.network == wanted || end.network_id == wanted);
    let volume = |wanted: &str| one.mounts.iter().any(|mount| mount.name == wanted || mount.destination == wanted);
    let health_word = one.health.as_ref().map_or("none", |of| health(of.word));
    let port = |wanted: &str, public: bool| {
        let (range, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { return false };
        one.ports.iter().any(|port| {
            let number = if public { port.published_port } else { port.target_port };
            port.protocol.name() == protocol && (first..=last).contains(&number)
        })
    };
    filters.begins("id", &one.id)
        && filters.any("name", exact_or_part)
        && filters.labels("label", &one.labels)
        && filters.is("status", state(one.life.phase))
        && filters.any("exited", |code| one.life.phase == Phase::Exited && code.parse() == Ok(one.life.exit_code))
        && filters.any("ancestor", image)
        && filters.any("network", network)
        && filters.any("volume", volume)
        && filters.is("health", health_word)
        && filters.any("publish", |wanted| port(wanted, true))
        && filters.any("expose", |wanted| port(wanted, false))
        && filters.any("is-task", |word| matches!(word, "1" | "true") == one.is_task)
}

/// By id, or by name with or without tag and digest.
fn is_image(one: &Container, wanted: &str) -> bool {
    let id = one.image_id.strip_prefix("sha256:").unwrap_or(&one.image_id);
    let wanted_id = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let name = one.spec.image.as_str();
    let without_digest = name.split('@').next().unwrap_or(name);
    let without_tag = match without_digest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => without_digest,
    };
    let latest = format!("{wanted}:latest");
    (wanted_id.len() >= 4 && id.starts_with(wanted_id)) || [name, without_digest, without_tag].contains(&wanted) || without_digest == latest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Life;

    #[test]
    fn filters_are_as_dockerd_s() {
        let mut one = Container { id: "abc".into(), name: "web.1.x".into(), image_id: "sha256:12345".into(), ..Container::default() };
        one.spec.image = "registry:5000/nginx:1.27@sha256:99".into();
        one.life = Life { phase: Phase::Exited, exit_code: 3, ..Life::default() };
        let holds = |text: &str| is_wanted(&Filters::parse(text, &FILTERS).unwrap(), &one);
        for good in [
            r#"{"name":["web"]}"#,
            r#"{"name":["^/web.1.x$"]}"#,
            r#"{"ancestor":["registry:5000/nginx"]}"#,
            r#"{"ancestor":["registry:5000/nginx:1.27"]}"#,
            r#"{"ancestor":["12345"]}"#,
            r#"{"exited":["3","4"]}"#,
            r#"{"health":["none"]}"#,
            r#"{"is-task":["false"]}"#,
            r#"{"status":["exited"]}"#,
        ] {
            assert!(holds(good), "{good}");
        }
        for bad in [
            r#"{"name":["^web$"]}"#,
            r#"{"ancestor":["nginx"]}"#,
            r#"{"exited":["0"]}"#,
            r#"{"is-task":["1"]}"#,
            r#"{"status":["running"]}"#,
        ] {
            assert!(!holds(bad), "{bad}");
        }
        assert!(check(&Filters::parse(r#"{"status":["odd"]}"#, &FILTERS).unwrap()).is_err());
    }
}
