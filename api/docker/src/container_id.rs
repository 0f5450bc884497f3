//! The ids of tasks' containers in this API: 64 hexadecimal digits, as clients expect, made of the task's own.
//!
//! In this system a task's container is called as its task. Here it must not be: `docker inspect ID` asks for containers first, and who
//! names a task means the task. The digits are those of the task's id in ASCII, filled up with zeros, so that either id gives the other.

use skep_types::TaskId;

const DIGITS: usize = 64;

/// The id of a task's container.
#[must_use]
pub fn container_id(task: &TaskId) -> String {
    let mut id: String = task.as_str().bytes().map(|byte| format!("{byte:02x}")).collect();
    id.extend(std::iter::repeat_n('0', DIGITS.saturating_sub(id.len())));
    id
}

/// Whose container it is; `None` if it is no task's.
#[must_use]
pub fn task_of_container(id: &str) -> Option<TaskId> {
    if id.len() != DIGITS || !id.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let bytes = (0..DIGITS / 2).map_while(|at| u8::from_str_radix(&id[at * 2..at * 2 + 2], 16).ok());
    let text: String = bytes.take_while(|byte| *byte != 0).map(char::from).collect();
    text.parse().ok().filter(|task| container_id(task) == id)
}

/// Of an exec's id, what is its own: then come the digits of its task's.
const OWN_DIGITS: usize = 14;

/// Whose exec it is; `None` if it is no task's.
#[must_use]
pub fn task_of_exec(id: &str) -> Option<TaskId> {
    let own = id.get(..OWN_DIGITS)?;
    let task = id.get(OWN_DIGITS..)?;
    let is_one = task.len() <= DIGITS && own.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_one { task_of_container(&format!("{task:0<DIGITS$}")) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_id_gives_the_other() {
        let task: TaskId = "0x3k7n2wq0n1l4u5c7v9d8z2a".parse().unwrap();
        let id = container_id(&task);
        assert_eq!((id.len(), &id[..12]), (64, "3078336b376e"));
        assert_eq!(task_of_container(&id), Some(task.clone()));
        for odd in ["", task.as_str(), &"f".repeat(64), &"0".repeat(64), &id[..63]] {
            assert_eq!(task_of_container(odd), None, "{odd}");
        }
        let exec = format!("0123456789abcd{}", &id[..50]);
        assert_eq!(task_of_exec(&exec), Some(task));
        for odd in ["", &exec[..14], &exec[..63], &format!("g{}", &exec[1..]), &"f".repeat(64), "é0123456789abcdef"] {
            assert_eq!(task_of_exec(odd), None, "{odd}");
        }
    }
}
