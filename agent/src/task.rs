//! One task of this node: what to do next ([`machine`], pure) and doing it ([`drive`]).

pub(crate) mod drive; // carries the machine's actions out, one owned async task per task
pub(crate) mod isolated; // whether a task that ended is started again without a manager
pub(crate) mod machine; // decides: event in, actions out
pub(crate) mod slots; // which task waits for which other to be gone

pub(crate) use isolated::Alone;
pub(crate) use machine::Event;
pub use machine::Outcome;
