//! D1 to D4: what the docker command line and the programs beside it ask for, of us, of dockerd and (of containers) of `ctr`.

mod commands; // D2, D3: run, exec
mod listing; // D1: service ls
mod logs; // D4: logs --follow
mod runners; // who runs containers for a command line

pub use commands::{exec, run};
pub use listing::{Size, listing};
pub use logs::follow;
