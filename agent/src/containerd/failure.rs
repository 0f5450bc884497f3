//! runc's error texts, sorted by what a person can do about them. containerd passes them on as text only.

use crate::error::ExecError;

/// What stands between `exec: "` and the closing quote.
fn quoted_command(text: &str) -> Option<&str> {
    let rest = &text[text.find("exec: \"")? + 7..];
    rest.split('"').next()
}

/// The reason in our words, or containerd's own with the noise of its layers cut off.
pub fn explain(step: &'static str, text: &str) -> ExecError {
    if let Some(command) = quoted_command(text) {
        let command = command.to_owned();
        if text.contains("executable file not found") || text.contains("no such file or directory") {
            return ExecError::CommandNotFound { command };
        }
        if text.contains("permission denied") || text.contains("exec format error") || text.contains("is a directory") {
            return ExecError::CommandNotExecutable { command };
        }
    }
    // runc 1.1 says `exec /bin/x: no such file or directory` when the interpreter of a program is missing.
    if let Some(at) = text.find("exec /")
        && text.contains("no such file or directory")
    {
        let command = text[at + 5..].split(':').next().unwrap_or_default().to_owned();
        return ExecError::CommandNotFound { command };
    }
    if text.contains("OOM-killed") || text.contains("cannot allocate memory") || text.contains("memory limit too low") {
        return ExecError::NoMemory { reason: short(text) };
    }
    if text.contains("no space left on device") {
        return ExecError::NoSpace { step };
    }
    if let Some(at) = text.find("chdir to cwd (\"") {
        let dir = text[at + 15..].split('"').next().unwrap_or_default().to_owned();
        return ExecError::BadWorkingDir { dir, reason: short(text) };
    }
    ExecError::Runtime { step, reason: short(text) }
}

/// Without the names of the layers it came through.
fn short(text: &str) -> String {
    let noise =
        ["failed to create shim task", "OCI runtime create failed", "OCI runtime start failed", "runc create failed", "runc start failed"];
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(": ") {
        if !noise.contains(&head) {
            break;
        }
        rest = tail;
    }
    rest.strip_suffix(": unknown").unwrap_or(rest).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_can_cure_is_recognised() {
        let head = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: ";
        let missing = format!("{head}exec: \"nosuch\": executable file not found in $PATH: unknown");
        assert!(matches!(explain("start", &missing), ExecError::CommandNotFound { command } if command == "nosuch"));
        let missing = format!("{head}exec: \"/no/such\": stat /no/such: no such file or directory: unknown");
        assert!(matches!(explain("start", &missing), ExecError::CommandNotFound { command } if command == "/no/such"));
        let denied = format!("{head}exec: \"/etc/passwd\": permission denied: unknown");
        assert!(matches!(explain("start", &denied), ExecError::CommandNotExecutable { command } if command == "/etc/passwd"));
        let memory = format!("{head}container init was OOM-killed (memory limit too low?): unknown");
        assert!(matches!(explain("start", &memory), ExecError::NoMemory { .. }));
        let other = format!("{head}something odd: unknown");
        assert_eq!(explain("start", &other).to_string(), "containerd could not start: unable to start container process: something odd");
    }
}
