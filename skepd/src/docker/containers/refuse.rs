//! The agent's refusals in the API's words.

use skep_agent::{ContainersError as E, ExecError, PlaceError};
use skep_docker_api::{ApiError, container_id};
use skep_types::TaskId;

/// In this API a task's container is not called as its task.
fn called(container: &str) -> String {
    container.parse::<TaskId>().map_or_else(|_| container.to_owned(), |task| container_id(&task))
}

/// The one place where what the agent refuses gets its status.
pub fn refusal(error: E) -> ApiError {
    let words = error.words();
    match error {
        E::NotFound { container } => ApiError::not_found(format!("No such container: {}", called(&container))),
        E::NameTaken { name, container } => ApiError::conflict(format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove (or rename) that container \
             to be able to reuse that name.",
            called(&container)
        )),
        E::Running { container } => ApiError::conflict(E::Running { container: called(&container) }.to_string()),
        E::OfTask { .. } => ApiError::unimplemented("a task's container is started once; its service starts another task in its place"),
        E::NotRunning { container } => ApiError::conflict(format!("container {} is not running", called(&container))),
        E::Paused { container } => ApiError::conflict(E::Paused { container: called(&container) }.to_string()),
        E::AlreadyPaused { container } => ApiError::conflict(E::AlreadyPaused { container: called(&container) }.to_string()),
        E::NotPaused { container } => ApiError::conflict(E::NotPaused { container: called(&container) }.to_string()),
        E::NoSuchFile { container, path } => ApiError::not_found(E::NoSuchFile { container: called(&container), path }.to_string()),
        E::NoPort { container, port, reason } => {
            ApiError::unavailable(E::NoPort { container: called(&container), port, reason }.to_string())
        }
        E::OnHostNetwork { container } => ApiError::invalid(E::OnHostNetwork { container: called(&container) }.to_string()),
        E::NoSuchExec { .. } | E::NoSuchVolume { .. } => ApiError::not_found(words),
        E::AlreadyRun { .. } | E::TooManyExecs { .. } | E::NoTerminal { .. } | E::OtherVolumeOptions { .. } => ApiError::conflict(words),
        E::NoCommand | E::BadSignal { .. } | E::BadFile { .. } | E::BadVolumeName { .. } | E::BadVolumeOptions { .. } => {
            ApiError::invalid(words)
        }
        E::NamedOnNetworks { container } => ApiError::unimplemented(E::NamedOnNetworks { container: called(&container) }.to_string()),
        E::NotOnNetwork { container, network } => {
            ApiError::forbidden(E::NotOnNetwork { container: called(&container), network }.to_string())
        }
        E::OnNetwork { .. } | E::HostNetwork | E::NoNetwork | E::Executor(ExecError::Place(PlaceError::NotAttachable { .. })) => {
            ApiError::forbidden(words)
        }
        E::HostsOwnNetwork { .. } => ApiError::unimplemented(words),
        E::Executor(ExecError::Place(PlaceError::NoNetwork { .. })) => ApiError::not_found(words),
        E::Executor(ExecError::Place(PlaceError::Refused { .. })) => ApiError::invalid(words),
        E::NoLogs => ApiError::unimplemented(words),
        E::Executor(
            ExecError::CommandNotFound { .. }
            | ExecError::CommandNotExecutable { .. }
            | ExecError::BadUser { .. }
            | ExecError::BadWorkingDir { .. }
            | ExecError::MountSourceMissing { .. }
            | ExecError::LogDriver { .. }
            | ExecError::LogOption { .. }
            | ExecError::NoCommand
            | ExecError::BadSpec { .. },
        ) => ApiError::invalid(words),
        E::Executor(ExecError::Unsupported { .. }) => ApiError::unimplemented(words),
        E::Ending | E::Executor(ExecError::Unreachable { .. }) => ApiError::unavailable(words),
        E::Executor(_) | E::Io { .. } | E::NoPs { .. } | E::Ps { .. } => ApiError::internal(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_called_by_its_id_in_this_api() {
        let task = TaskId::for_test(1);
        let refused = refusal(E::NotRunning { container: task.to_string() });
        assert_eq!(
            (refused.message, refused.kind),
            (format!("container {} is not running", container_id(&task)), ApiError::conflict("").kind)
        );
        assert_eq!(refusal(E::NoLogs).status(), 501);
    }
}
