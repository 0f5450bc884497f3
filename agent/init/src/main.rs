//! See the library, [`skep_init`].

use skep_init::{Command, USAGE, supervise};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let failed = match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Start { program, arguments }) => match supervise(&program, &arguments) {
            Ok(status) => return ExitCode::from(status),
            Err(error) => (error.to_string(), error.status()),
        },
        Ok(Command::Version) => {
            println!("skep-init {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => (format!("{error}\n{USAGE}"), 2),
    };
    let (words, status) = failed;
    // The container's error output may be closed; the status tells as well.
    let _ = writeln!(std::io::stderr(), "skep-init: {words}");
    ExitCode::from(status)
}
