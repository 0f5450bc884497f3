//! What other hosts reach of a node: the containers of its tasks, by their full ids, and nothing else of it.

use crate::{ApiError, container_id, task_of_container, task_of_exec};
use http::{Method, Uri};
use skep_types::TaskId;

/// Marks a request that is about containers of tasks only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TasksOnly;

/// Whose container a request is about; `None`: about all of them.
///
/// # Errors
/// 404 for all that is not about such a container, whether or not it is there.
pub(crate) fn admit(method: &Method, uri: &Uri) -> Result<Option<TaskId>, ApiError> {
    let mut steps = uri.path().split('/').skip(1);
    match (steps.next(), steps.next(), steps.next()) {
        (Some("containers"), Some("json"), None) if *method == Method::GET => Ok(None),
        (Some("containers"), Some(id), _) => match task_of_container(id) {
            Some(task) => Ok(Some(task)),
            None => Err(ApiError::not_found(format!("No such container: {id}"))),
        },
        (Some("exec"), Some(id), Some(_)) => match task_of_exec(id) {
            Some(task) => Ok(Some(task)),
            None => Err(ApiError::not_found(format!("No such exec instance: {id}"))),
        },
        _ => Err(ApiError::not_found("page not found")),
    }
}

/// # Errors
/// 404 for a container that people made by hand: its id has the same form.
pub(crate) fn check(meant: &TaskId, is_made_by_hand: impl FnOnce(&str) -> bool) -> Result<(), ApiError> {
    let id = container_id(meant);
    if is_made_by_hand(&id) { Err(ApiError::not_found(format!("No such container: {id}"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_made_by_hand_is_no_task_s() {
        let by_hand = container_id(&TaskId::for_test(7));
        assert_eq!(check(&TaskId::for_test(7), |id| id == by_hand).unwrap_err().status(), 404);
        assert!(check(&TaskId::for_test(8), |id| id == by_hand).is_ok());
    }

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
