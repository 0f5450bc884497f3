//! Which container is meant: its full id, its name, or the beginning of its id, in this order.

use crate::{ApiError, Backend, Container};

/// # Errors
/// 404 in dockerd's words, 400 if several are meant.
pub(crate) async fn find(backend: &Backend, wanted: &str) -> Result<Container, ApiError> {
    pick(backend.containers.list().await?, wanted)
}

fn pick(all: Vec<Container>, wanted: &str) -> Result<Container, ApiError> {
    let name = wanted.strip_prefix('/').unwrap_or(wanted);
    let none = || ApiError::not_found(format!("No such container: {wanted}"));
    if name.is_empty() {
        return Err(none());
    }
    let exact = all.iter().position(|one| one.id == wanted).or_else(|| all.iter().position(|one| one.name == name));
    if let Some(at) = exact {
        return all.into_iter().nth(at).ok_or_else(none);
    }
    let mut meant = all.into_iter().filter(|one| one.id.starts_with(wanted));
    match (meant.next(), meant.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(none()),
        (Some(_), Some(_)) => Err(ApiError::invalid(format!("multiple IDs found with provided prefix: {wanted}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_goes_before_a_name_and_a_name_before_a_beginning() {
        let container = |id: &str, name: &str| Container { id: id.into(), name: name.into(), ..Container::default() };
        let all = || vec![container("abc1", "web.1.x"), container("abd2", "abc1"), container("e3", "ab")];
        let picked = |wanted| pick(all(), wanted).map(|one| one.id);
        assert_eq!(picked("abc1").unwrap(), "abc1");
        assert_eq!(picked("/web.1.x").unwrap(), "abc1");
        assert_eq!(picked("ab").unwrap(), "e3");
        assert_eq!(picked("abd").unwrap(), "abd2");
        assert_eq!(pick(all()[..2].to_vec(), "ab").unwrap_err().status(), 400);
        assert_eq!(picked("x").unwrap_err(), ApiError::not_found("No such container: x"));
        assert!(picked("").is_err() && picked("/").is_err());
    }
}
