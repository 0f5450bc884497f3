//! Which task's container is meant, and where it is. Only what the text can mean is asked for: there may be very many tasks.

use crate::{ApiError, Backend, ErrorKind, TaskSelect, container_id, task_of_container, task_of_exec};
use skep_types::{NodeId, Task, TaskId};

/// A task's container and its node.
pub(super) struct Found {
    /// All 64 digits.
    pub id: String,
    pub node: NodeId,
}

/// By full id, name, or the beginning of the id, in this order.
///
/// # Errors
/// 404 in dockerd's words, 400 if several are meant, and what the cluster refuses.
pub(super) async fn container(backend: &Backend, wanted: &str) -> Result<Found, ApiError> {
    let none = || ApiError::not_found(format!("No such container: {wanted}"));
    if let Some(id) = task_of_container(wanted) {
        return found(&get(backend, &id).await?.ok_or_else(none)?).ok_or_else(none);
    }
    let name = wanted.strip_prefix('/').unwrap_or(wanted);
    // The name of a task ends with its id.
    if let Some((_, id)) = name.rsplit_once('.')
        && let Ok(id) = id.parse()
        && let Some(task) = get(backend, &id).await?
        && task.name() == name
    {
        return found(&task).ok_or_else(none);
    }
    let beginning = beginning(wanted).ok_or_else(none)?;
    let meant = backend.cluster.list_tasks(&TaskSelect { ids: vec![beginning], ..TaskSelect::default() }).await?;
    let mut meant = meant.iter().filter(|task| container_id(&task.id).starts_with(wanted)).filter_map(|task| found(task));
    match (meant.next(), meant.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(none()),
        (Some(_), Some(_)) => Err(ApiError::invalid(format!("multiple IDs found with provided prefix: {wanted}"))),
    }
}

/// The node of an exec's container.
///
/// # Errors
/// 404, and what the cluster refuses.
pub(super) async fn exec(backend: &Backend, id: &str) -> Result<NodeId, ApiError> {
    let none = || ApiError::not_found(format!("No such exec instance: {id}"));
    let task = task_of_exec(id).ok_or_else(none)?;
    found(&get(backend, &task).await?.ok_or_else(none)?).map(|found| found.node).ok_or_else(none)
}

fn found(task: &Task) -> Option<Found> {
    Some(Found { id: container_id(&task.id), node: task.node_id.clone()? })
}

async fn get(backend: &Backend, id: &TaskId) -> Result<Option<Task>, ApiError> {
    match backend.cluster.get_task(id.as_str()).await {
        Ok(task) => Ok(Some(task)),
        Err(error) if matches!(error.kind, ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The beginning of the task's id that the beginning of its container's id says: two digits for each character, the last may have one.
fn beginning(wanted: &str) -> Option<String> {
    let digits = wanted.len() >= 2 && wanted.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bytes = digits.then(|| (0..wanted.len() / 2).map(|at| u8::from_str_radix(&wanted[at * 2..at * 2 + 2], 16)))?;
    let text: String = bytes.map_while(Result::ok).take_while(|byte| *byte != 0).map(char::from).collect();
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::beginning;

    #[test]
    fn the_beginning_of_a_container_s_id_is_that_of_its_task_s() {
        assert_eq!(beginning("3078336b376e").as_deref(), Some("0x3k7n"));
        assert_eq!(beginning("3078336b376").as_deref(), Some("0x3k7"));
        for odd in ["", "3", "zz", "web.1", "00", "ffff", "é"] {
            assert_eq!(beginning(odd), None, "{odd}");
        }
    }
}
