//! What other hosts reach of a node: the containers of its tasks, by their full ids, and nothing else of it.

use crate::{ApiError, task_of_container, task_of_exec};
use http::{Method, Uri};

/// Marks a request that is about containers of tasks only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TasksOnly;

/// # Errors
/// 404 for all that is not about such a container, whether or not it is there.
pub(crate) fn admit(method: &Method, uri: &Uri) -> Result<(), ApiError> {
    let mut steps = uri.path().split('/').skip(1);
    match (steps.next(), steps.next(), steps.next()) {
        (Some("containers"), Some("json"), None) if *method == Method::GET => Ok(()),
        (Some("containers"), Some(id), _) => match task_of_container(id) {
            Some(_) => Ok(()),
            None => Err(ApiError::not_found(format!("No such container: {id}"))),
        },
        (Some("exec"), Some(id), Some(_)) => match task_of_exec(id) {
            Some(_) => Ok(()),
            None => Err(ApiError::not_found(format!("No such exec instance: {id}"))),
        },
        _ => Err(ApiError::not_found("page not found")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container_id;
    use skep_types::TaskId;

    #[test]
    fn containers_of_tasks_are_reached_and_nothing_else() {
        let container = container_id(&TaskId::for_test(7));
        let exec = format!("0123456789abcd{}", &container[..50]);
        let may = |method: Method, path: &str| admit(&method, &path.parse().unwrap()).is_ok();
        for path in [format!("/containers/{container}"), format!("/containers/{container}/logs?x"), format!("/exec/{exec}/start")] {
            assert!(may(Method::POST, &path), "{path}");
        }
        assert!(may(Method::GET, "/containers/json?all=1"));
        let foreign = "f".repeat(64);
        for path in [
            "/containers/create",
            "/containers/prune",
            "/containers/json",
            "/containers/json/x",
            "/containers/",
            "/containers//json",
            "//containers/json",
            "/containers/web.1.x/json",
            "/containers/../images/json",
            &format!("/containers/{foreign}/kill"),
            &format!("/containers/{}/kill", &container[..12]),
            &format!("/exec/{foreign}/start"),
            &format!("/exec/{exec}"),
            "/exec/x/start",
            "/images/json",
            "/images/create",
            "/volumes",
            "/services",
            "/swarm",
            "/info",
            "/events",
            "/_ping",
            "/commit",
            "/",
        ] {
            assert!(!may(Method::POST, path), "{path}");
        }
    }
}
