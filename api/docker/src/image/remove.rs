//! Names and images that go.

use super::find::{by_id, familiar, pick, repository};
use crate::body::Json;
use crate::query::Query;
use crate::{ApiError, Backend, Container, Image, Phase, Removed};
use axum::extract::{Path, State};
use serde_json::{Value, json};

fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}

/// Which names are to go; all of them: the image goes as well.
fn plan(image: &Image, wanted: &str, is_id: bool, users: &[Container], force: bool) -> Result<Vec<String>, ApiError> {
    let names: Vec<&String> = image.tags.iter().chain(&image.digests).collect();
    let name = familiar(wanted);
    let mut repositories: Vec<&str> = names.iter().map(|name| repository(name)).collect();
    repositories.sort_unstable();
    repositories.dedup();
    if is_id && repositories.len() > 1 && !force {
        return Err(ApiError::conflict(format!(
            "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
            short(&image.id)
        )));
    }
    let is_last_tag = image.tags.len() <= 1;
    let going: Vec<String> = match is_id || is_last_tag {
        true => names.into_iter().cloned().collect(),
        // Other tags of the repository keep its digest.
        false => vec![name.clone()],
    };
    let user = users.iter().find(|one| one.image_id == image.id);
    if let Some(user) = user.filter(|_| is_id || is_last_tag) {
        let is_running = matches!(user.life.phase, Phase::Running | Phase::Paused);
        let (id, container) = (short(&image.id), user.id.get(..12).unwrap_or(&user.id));
        if is_running {
            return Err(ApiError::conflict(match is_id {
                true => format!("conflict: unable to delete {id} (cannot be forced) - image is being used by running container {container}"),
                false => format!(
                    "conflict: unable to remove repository reference \"{wanted}\" (must force) - container {container} is using its referenced image {id}"
                ),
            }))
            .or_else(|refusal| if force && !is_id { Ok(going) } else { Err(refusal) });
        }
        if !force {
            return Err(ApiError::conflict(format!(
                "conflict: unable to remove repository reference \"{wanted}\" (must force) - container {container} is using its referenced image {id}"
            )));
        }
    }
    Ok(going)
}

async fn carry_out(backend: &Backend, image: &Image, going: &[String]) -> Result<Vec<Removed>, ApiError> {
    let mut removed = Vec::new();
    for name in going {
        match backend.images.untag(name).await {
            Ok(()) => removed.push(Removed::Untagged(name.clone())),
            // A digest that is not a name of its own goes with the tag.
            Err(error) if error.is_not_found() => removed.push(Removed::Untagged(name.clone())),
            Err(error) => return Err(error),
        }
    }
    if going.len() == image.tags.len() + image.digests.len() {
        removed.push(Removed::Deleted(image.id.clone()));
    }
    Ok(removed)
}

fn json(removed: &[Removed]) -> Vec<Value> {
    let one = |removed: &Removed| match removed {
        Removed::Untagged(name) => json!({ "Untagged": name }),
        Removed::Deleted(id) => json!({ "Deleted": id }),
    };
    removed.iter().map(one).collect()
}

pub(super) async fn remove(State(backend): State<Backend>, Path(name): Path<String>, query: Query) -> Result<Json<Vec<Value>>, ApiError> {
    let all = backend.images.list().await?;
    let image = pick(&all, &name)?;
    let known = familiar(&name);
    let is_id = !image.tags.contains(&known) && !image.digests.contains(&known) && by_id(&all, &name)?.is_some();
    let users = backend.containers.list().await?;
    let going = plan(image, &name, is_id, &users, query.is("force"))?;
    Ok(Json(json(&carry_out(&backend, image, &going).await?)))
}

/// Those that no container uses: without a name only, unless `dangling=false`.
pub(super) async fn prune(State(backend): State<Backend>, query: Query) -> Result<Json<Value>, ApiError> {
    let filters = query.filters(&["dangling", "label", "label!", "until"])?;
    let only_nameless = filters.flag("dangling")?.unwrap_or(true);
    let until = filters.values("until").first().map(|text| crate::when::moment(text, crate::when::now())).transpose()?;
    let users = backend.containers.list().await?;
    let (mut removed, mut bytes) = (Vec::new(), 0);
    for image in backend.images.list().await? {
        let is_used = users.iter().any(|one| one.image_id == image.id);
        let is_kept = is_used
            || (only_nameless && !super::inspect::is_dangling(&image))
            || until.is_some_and(|until| image.created_at.unwrap_or_default() > until)
            || !filters.labels("label", &image.config.labels)
            || (filters.has("label!") && filters.labels("label!", &image.config.labels));
        if is_kept {
            continue;
        }
        let going: Vec<String> = image.tags.iter().chain(&image.digests).cloned().collect();
        removed.extend(carry_out(&backend, &image, &going).await?);
        bytes += image.size;
    }
    let list = if removed.is_empty() { Value::Null } else { json!(json(&removed)) };
    Ok(Json(json!({ "ImagesDeleted": list, "SpaceReclaimed": bytes })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Life;

    fn image(tags: &[&str]) -> Image {
        let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Image { id: "sha256:aabbccddeeff00".into(), tags, digests: vec!["a@sha256:1".into()], ..Image::default() }
    }

    #[test]
    fn the_last_name_takes_the_image_along() {
        assert_eq!(plan(&image(&["a:1", "a:2"]), "a:1", false, &[], false).unwrap(), ["a:1"]);
        assert_eq!(plan(&image(&["a:1"]), "a:1", false, &[], false).unwrap(), ["a:1", "a@sha256:1"]);
        assert_eq!(plan(&image(&["a:1", "b:1"]), "aabb", true, &[], false).unwrap_err().status(), 409);
        assert_eq!(plan(&image(&["a:1", "b:1"]), "aabb", true, &[], true).unwrap().len(), 3);
    }

    #[test]
    fn an_image_in_use_stays() {
        let user = |phase| Container {
            id: "c0ffee".repeat(8),
            image_id: "sha256:aabbccddeeff00".into(),
            life: Life { phase, ..Life::default() },
            ..Container::default()
        };
        let running = [user(Phase::Running)];
        assert!(
            plan(&image(&["a:1"]), "a:1", false, &running, false).unwrap_err().message.contains("(must force) - container c0ffeec0ffee")
        );
        assert!(plan(&image(&["a:1"]), "aabb", true, &running, true).unwrap_err().message.contains("(cannot be forced)"));
        // Another name keeps it.
        assert!(plan(&image(&["a:1", "a:2"]), "a:1", false, &running, false).is_ok());
        assert!(plan(&image(&["a:1"]), "a:1", false, &[user(Phase::Exited)], true).is_ok());
    }
}
