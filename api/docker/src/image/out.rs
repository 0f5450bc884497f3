//! Images on their way out: archives, and registries.

use super::find::{pick, repository};
use super::{auth, check_platform, familiar};
use crate::query::Query;
use crate::stream;
use crate::{ApiError, Backend, Image, PushNews, PushStep, SavedImage};
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use futures_util::stream::{self as streams, BoxStream};
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

/// Whether a name says neither tag nor digest: then all tags of the repository are meant.
fn is_bare(name: &str) -> bool {
    !name.contains('@') && !name.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

/// All tags of a repository, with the image of each.
fn tags_of<'a>(all: &'a [Image], name: &str) -> Vec<(&'a Image, &'a String)> {
    let familiar = familiar(name);
    let wanted = repository(&familiar);
    let tags = all.iter().flat_map(|image| image.tags.iter().map(move |tag| (image, tag)));
    tags.filter(|(_, tag)| repository(tag) == wanted).collect()
}

/// Which images under which names; one that was asked for by its id keeps none, as with dockerd.
fn chosen<'a>(all: &[Image], names: impl Iterator<Item = &'a str>) -> Result<Vec<SavedImage>, ApiError> {
    let mut chosen: Vec<SavedImage> = Vec::new();
    let mut add = |image: &Image, name: Option<&String>| {
        let known = image.tags.first().or(image.digests.first());
        let at = match chosen.iter().position(|one| one.id == image.id) {
            Some(at) => at,
            None => {
                chosen.push(SavedImage { id: image.id.clone(), known_as: known.cloned().unwrap_or_default(), names: Vec::new() });
                chosen.len() - 1
            }
        };
        let names = &mut chosen[at].names;
        names.extend(name.filter(|name| !names.contains(name)).cloned().into_iter().collect::<Vec<_>>());
    };
    for name in names {
        let tags = if is_bare(name) { tags_of(all, name) } else { Vec::new() };
        if tags.is_empty() {
            let image = pick(all, name)?;
            add(image, image.tags.iter().find(|tag| **tag == familiar(name)));
        }
        for (image, tag) in tags {
            add(image, Some(tag));
        }
    }
    if chosen.is_empty() {
        return Err(ApiError::invalid("names: no image was named; name those that are to be saved"));
    }
    Ok(chosen)
}

/// An archive that `docker load` takes, of the images in the path or in `names`.
pub(super) async fn save(backend: &Backend, path: Option<&str>, query: &Query) -> Result<Response, ApiError> {
    check_platform(query)?;
    let all = backend.images.list().await?;
    let images = match path {
        Some(name) => chosen(&all, std::iter::once(name))?,
        None => chosen(&all, query.all("names"))?,
    };
    let archive = backend.images.save(images).await?;
    // An archive that breaks off breaks the connection: that is how the client sees that it is not whole.
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"))], Body::from_stream(archive)).into_response())
}

/// With the registry's host, as the first line of a push has it.
fn full(name: &str) -> String {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// What goes wrong is told in the stream: the first line is out before a registry was asked, as with dockerd.
pub(super) async fn push(backend: &Backend, name: &str, query: &Query, headers: &HeaderMap) -> Result<Response, ApiError> {
    check_platform(query)?;
    let named = match query.text("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    };
    let wanted: Vec<String> = if is_bare(&named) {
        let all = backend.images.list().await?;
        tags_of(&all, &named).into_iter().map(|(_, tag)| tag.clone()).collect()
    } else {
        vec![familiar(&named)]
    };
    let shown = familiar(name);
    let shown = repository(&shown).to_owned();
    let mut pushes: Vec<BoxStream<'static, Result<PushNews, ApiError>>> = Vec::new();
    if wanted.is_empty() {
        let missing = ApiError::not_found(format!("An image does not exist locally with the tag: {shown}"));
        pushes.push(streams::once(std::future::ready(Err(missing))).boxed());
    }
    for reference in &wanted {
        pushes.push(backend.images.push(reference, auth(headers)).await?);
    }
    let head = json!({ "status": format!("The push refers to repository [{}]", full(&shown)) });
    let told = streams::iter(pushes).flatten().flat_map(|news| {
        let lines = match news {
            Ok(news) => lines(news).into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        streams::iter(lines)
    });
    Ok(stream::lines(streams::once(std::future::ready(Ok(head))).chain(told)))
}

/// In dockerd's words: programs read them.
fn lines(news: PushNews) -> Vec<Value> {
    match news {
        PushNews::Layer { id, step, done, total } => {
            let (status, detail) = match step {
                PushStep::Waiting => ("Preparing", json!({})),
                PushStep::Exists => ("Layer already exists", json!({})),
                PushStep::Sending => ("Pushing", json!({ "current": done, "total": total })),
                PushStep::Sent => ("Pushed", json!({})),
            };
            vec![json!({ "status": status, "progressDetail": detail, "id": id })]
        }
        PushNews::Done { tag, digest, size } => vec![
            json!({ "status": format!("{tag}: digest: {digest} size: {size}") }),
            json!({ "progressDetail": {}, "aux": { "Tag": tag, "Digest": digest, "Size": size } }),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tags: &[&str]) -> Image {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Image { id: format!("sha256:{id}"), tags, digests: vec![format!("x@sha256:{id}")], ..Image::default() }
    }

    fn names(all: &[Image], asked: &[&str]) -> Vec<Vec<String>> {
        chosen(all, asked.iter().copied()).unwrap().into_iter().map(|one| one.names).collect()
    }

    #[test]
    fn a_bare_name_means_all_its_tags_and_an_id_none() {
        let all = [image("aa11", &["a:1", "b:1"]), image("bb22", &["a:latest"])];
        assert_eq!(names(&all, &["a"]), [vec!["a:1"], vec!["a:latest"]]);
        assert_eq!(names(&all, &["a:1"]), [["a:1"]]);
        assert_eq!(names(&all, &["a:1", "docker.io/library/b:1", "a:1"]), [["a:1", "b:1"]]);
        assert_eq!(names(&all, &["aa11"]), [Vec::<String>::new()]);
        assert_eq!(names(&all, &["sha256:aa11", "a:1"]), [["a:1"]]);
        assert_eq!(chosen(&all, ["a:2"].into_iter()).unwrap_err().status(), 404);
        assert_eq!(chosen(&all, std::iter::empty()).unwrap_err().status(), 400);
    }

    #[test]
    fn a_push_is_told_in_dockerd_s_words() {
        assert_eq!(
            [full("x"), full("a/x"), full("h:5/x"), full("localhost/x")],
            ["docker.io/library/x", "docker.io/a/x", "h:5/x", "localhost/x"]
        );
        let layer = PushNews::Layer { id: "abc".into(), step: PushStep::Sending, done: 5, total: 9 };
        assert_eq!(lines(layer), [json!({ "status": "Pushing", "progressDetail": { "current": 5, "total": 9 }, "id": "abc" })]);
        let done = lines(PushNews::Done { tag: "1".into(), digest: "sha256:7".into(), size: 3 });
        assert_eq!(done[0]["status"], "1: digest: sha256:7 size: 3");
        assert_eq!(done[1]["aux"], json!({ "Tag": "1", "Digest": "sha256:7", "Size": 3 }));
    }
}
