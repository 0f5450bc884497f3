//! Which image is meant: a name, or an id or its beginning.

use crate::{ApiError, Backend, Image};

/// A name as people write it: without the default registry, with a tag or a digest.
pub(crate) fn familiar(text: &str) -> String {
    let text = ["docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/"]
        .iter()
        .find_map(|start| text.strip_prefix(start))
        .unwrap_or(text);
    let last = text.rsplit('/').next().unwrap_or(text);
    // A digest says everything.
    if let Some((name, digest)) = text.split_once('@') {
        return format!("{}@{digest}", without_tag(name));
    }
    if last.contains(':') { text.to_owned() } else { format!("{text}:latest") }
}

fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// The repository of a familiar name.
pub(super) fn repository(name: &str) -> &str {
    without_tag(name.split('@').next().unwrap_or(name))
}

/// # Errors
/// 404 in dockerd's words.
pub(crate) async fn find(backend: &Backend, wanted: &str) -> Result<Image, ApiError> {
    let all = backend.images.list().await?;
    pick(&all, wanted).cloned()
}

pub(super) fn pick<'a>(all: &'a [Image], wanted: &str) -> Result<&'a Image, ApiError> {
    let name = familiar(wanted);
    if let Some(image) = all.iter().find(|image| image.tags.contains(&name) || image.digests.contains(&name)) {
        return Ok(image);
    }
    if let Some(image) = by_id(all, wanted)? {
        return Ok(image);
    }
    let shown = if wanted.contains('@') { wanted.to_owned() } else { name };
    Err(ApiError::not_found(format!("No such image: {shown}")))
}

pub(super) fn by_id<'a>(all: &'a [Image], wanted: &str) -> Result<Option<&'a Image>, ApiError> {
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let mut meant = all.iter().filter(|image| image.id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(digits)));
    match (meant.next(), meant.next()) {
        (Some(_), Some(_)) => Err(ApiError::invalid(format!("ambiguous image ID prefix: {wanted}"))),
        (found, _) => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_people_write_them() {
        assert_eq!(familiar("nginx"), "nginx:latest");
        assert_eq!(familiar("docker.io/library/nginx:1"), "nginx:1");
        assert_eq!(familiar("docker.io/a/b"), "a/b:latest");
        assert_eq!(familiar("host:5000/a"), "host:5000/a:latest");
        assert_eq!(familiar("host:5000/a:1@sha256:77"), "host:5000/a@sha256:77");
        assert_eq!((repository("host:5000/a:1"), repository("host:5000/a@sha256:7")), ("host:5000/a", "host:5000/a"));
    }

    #[test]
    fn an_image_is_found_by_name_and_by_id() {
        let image = |id: &str, tag: &str| Image { id: format!("sha256:{id}"), tags: vec![tag.into()], ..Image::default() };
        let all = [image("aa11", "nginx:latest"), image("aa22", "beef:latest"), image("beef", "x:1")];
        let picked = |wanted| pick(&all, wanted).map(|image| image.tags[0].as_str());
        assert_eq!(picked("nginx").unwrap(), "nginx:latest");
        assert_eq!(picked("beef").unwrap(), "beef:latest");
        assert_eq!(picked("bee").unwrap(), "x:1");
        assert_eq!(picked("sha256:aa2").unwrap(), "beef:latest");
        assert_eq!(pick(&all, "aa").unwrap_err().status(), 400);
        assert_eq!(pick(&all, "none").unwrap_err().message, "No such image: none:latest");
    }
}
