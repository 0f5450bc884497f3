use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, OnceLock};

struct Armed {
    name: String,
    visits_left: u64,
}

struct Registry {
    armed: Mutex<Option<Armed>>,
    trace: Option<String>,
    seen: Mutex<BTreeSet<&'static str>>,
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let armed = std::env::var("SKEP_FAILPOINT").ok().map(|text| match text.rsplit_once(':') {
            Some((name, n)) => Armed { name: name.to_owned(), visits_left: n.parse().unwrap_or(1) },
            None => Armed { name: text, visits_left: 1 },
        });
        Registry { armed: Mutex::new(armed), trace: std::env::var("SKEP_FAILPOINT_TRACE").ok(), seen: Mutex::new(BTreeSet::new()) }
    })
}

/// Called by [`failpoint!`](crate::failpoint): traces the first visit, kills the process when armed.
pub fn hit(name: &'static str) {
    let registry = registry();
    if let Some(path) = &registry.trace {
        let mut seen = registry.seen.lock().expect("no panic while held");
        if seen.insert(name)
            && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
        {
            let _ = writeln!(file, "{name}");
        }
    }
    let mut armed = registry.armed.lock().expect("no panic while held");
    if let Some(point) = armed.as_mut().filter(|point| point.name == name) {
        point.visits_left = point.visits_left.saturating_sub(1);
        if point.visits_left == 0 {
            kill_self();
        }
    }
}

/// `kill -9` of ourselves: the signal cannot be caught and nothing of ours runs after it.
fn kill_self() -> ! {
    let pid = std::process::id().to_string();
    let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
    std::process::abort()
}
