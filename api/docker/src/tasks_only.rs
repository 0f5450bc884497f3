//! What other hosts reach of a node: the containers of its tasks, by their full ids, and nothing else of it.

use crate::{ApiError, Container, container_id, task_of_container, task_of_exec};
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
/// 404 where no task has that container: those that people made by hand have ids of the same form.
pub(crate) fn check(meant: &TaskId, all: &[Container]) -> Result<(), ApiError> {
    let id = container_id(meant);
    let is_there = all.iter().any(|one| one.id == id && one.is_task);
    if is_there { Ok(()) } else { Err(ApiError::not_found(format!("No such container: {id}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_made_by_hand_is_no_task_s() {
        let (task, id) = (TaskId::for_test(7), container_id(&TaskId::for_test(7)));
        let container = |is_task: bool| [Container { id: id.clone(), is_task, ..Container::default() }];
        assert!(check(&task, &container(true)).is_ok());
        assert_eq!(check(&task, &container(false)).unwrap_err().status(), 404);
        assert_eq!(check(&TaskId::for_test(8), &container(true)).unwrap_err().status(), 404);
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
