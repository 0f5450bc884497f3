//! Images from a registry and out of archives.

use super::{auth, familiar};
use crate::query::Query;
use crate::stream;
use crate::{ApiError, Backend, PullNews, PullStep};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::HeaderMap;
use serde_json::{Value, json};
use std::io;

/// What is asked for, in one name.
fn reference(query: &Query) -> Result<String, ApiError> {
    if query.text("fromSrc").is_some() {
        return Err(ApiError::unimplemented("this node does not make images out of archives of files; load one with `docker load`"));
    }
    let name = query.text("fromImage").ok_or_else(|| ApiError::invalid("invalid reference format: fromImage is missing"))?;
    match query.text("tag") {
        Some(tag) if tag.starts_with("sha256:") => Ok(format!("{name}@{tag}")),
        Some(tag) => Ok(format!("{name}:{tag}")),
        None if name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':')) => Ok(name.to_owned()),
        None => Err(ApiError::unimplemented(format!("all tags of {name} at once are not pulled; name one, such as tag=latest"))),
    }
}

/// The path within the registry of a name without tag.
fn repository(name: &str) -> String {
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path.to_owned(),
        Some(_) => name.to_owned(),
        None => format!("library/{name}"),
    }
}

/// Images are pulled for the machine they are to run on.
pub(crate) fn check_platform(query: &Query) -> Result<(), ApiError> {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let Some(wanted) = query.text("platform") else { return Ok(()) };
    let mut parts = wanted.split('/');
    let fits = parts.next().is_some_and(|os| os.eq_ignore_ascii_case("linux"))
        && parts.next().is_none_or(|arch| matches!((arch, own), ("x86_64", "amd64") | ("aarch64", "arm64")) || arch == own);
    if fits { Ok(()) } else { Err(ApiError::unimplemented(format!("this node pulls images for linux/{own} only, not for {wanted}"))) }
}

pub(super) async fn create(State(backend): State<Backend>, query: Query, headers: HeaderMap) -> Result<Response, ApiError> {
    let reference = reference(&query)?;
    check_platform(&query)?;
    let mut news = backend.images.pull(&reference, auth(&headers)).await?;
    // What the registry refuses is an error like any other; what breaks later is told in the stream.
    let first = news.next().await.transpose()?;
    let shown = familiar(&reference);
    let (name, tag) = match shown.split_once('@') {
        Some((name, digest)) => (name.to_owned(), digest.to_owned()),
        None => shown.rsplit_once(':').map(|(name, tag)| (name.to_owned(), tag.to_owned())).unwrap_or_default(),
    };
    let path = repository(&name);
    let head = json!({ "status": format!("Pulling from {path}"), "id": tag });
    let first: Vec<Result<Value, ApiError>> = first.map(|one| lines(one, &shown)).unwrap_or_default().into_iter().map(Ok).collect();
    let begin = futures_util::stream::iter(std::iter::once(Ok(head)).chain(first));
    Ok(stream::lines(begin.chain(rest(news, shown))))
}

fn rest(news: BoxStream<'static, Result<PullNews, ApiError>>, shown: String) -> impl futures_util::Stream<Item = Result<Value, ApiError>> {
    news.flat_map(move |one| {
        let told = match one {
            Ok(one) => lines(one, &shown).into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        futures_util::stream::iter(told)
    })
}

/// In dockerd's words: programs read them.
fn lines(news: PullNews, shown: &str) -> Vec<Value> {
    match news {
        PullNews::Layer { id, step, done, total } => {
            let (status, counts) = match step {
                PullStep::Waiting => ("Pulling fs layer", false),
                PullStep::Downloading => ("Downloading", true),
                PullStep::Retrying => ("Retrying", false),
                PullStep::Downloaded => ("Download complete", false),
                PullStep::Unpacking => ("Extracting", true),
                PullStep::Unpacked => ("Pull complete", false),
            };
            let detail = if counts { json!({ "current": done, "total": total }) } else { json!({}) };
            vec![json!({ "status": status, "progressDetail": detail, "id": id })]
        }
        PullNews::Done { digest, is_new } => {
            let words = if is_new { "Downloaded newer image for" } else { "Image is up to date for" };
            vec![json!({ "status": format!("Digest: {digest}") }), json!({ "status": format!("Status: {words} {shown}") })]
        }
    }
}

pub(super) async fn load(State(backend): State<Backend>, query: Query, request: Request) -> Result<Response, ApiError> {
    check_platform(&query)?;
    let archive = request.into_body().into_data_stream().map(|piece| piece.map_err(io::Error::other)).boxed();
    let names = backend.images.load(archive).await?;
    let told = names.into_iter().map(|name| Ok(json!({ "stream": format!("Loaded image: {name}\n") })));
    Ok(stream::lines(futures_util::stream::iter(told.collect::<Vec<_>>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_pulled_is_named_in_two_parts() {
        let asked = |text: &str| reference(&Query::parse(text));
        assert_eq!(asked("fromImage=nginx&tag=1").unwrap(), "nginx:1");
        assert_eq!(asked("fromImage=nginx&tag=sha256:77").unwrap(), "nginx@sha256:77");
        assert_eq!(asked("fromImage=host:5000/nginx:1").unwrap(), "host:5000/nginx:1");
        assert_eq!(asked("fromImage=host:5000/nginx").unwrap_err().status(), 501);
        assert_eq!(asked("fromSrc=-").unwrap_err().status(), 501);
        assert_eq!([repository("nginx"), repository("a/b"), repository("host:5000/a/b")], ["library/nginx", "a/b", "a/b"]);
        assert!(asked("").is_err());
        assert!(check_platform(&Query::parse("platform=linux")).is_ok() && check_platform(&Query::parse("")).is_ok());
        assert_eq!(check_platform(&Query::parse("platform=windows/amd64")).unwrap_err().status(), 501);
    }

    #[test]
    fn progress_is_told_in_dockerd_s_words() {
        let layer = PullNews::Layer { id: "abc".into(), step: PullStep::Downloading, done: 5, total: 9 };
        assert_eq!(lines(layer, "x"), [json!({ "status": "Downloading", "progressDetail": { "current": 5, "total": 9 }, "id": "abc" })]);
        let done = lines(PullNews::Done { digest: "sha256:1".into(), is_new: true }, "nginx:1");
        assert_eq!(done[1], json!({ "status": "Status: Downloaded newer image for nginx:1" }));
    }
}
