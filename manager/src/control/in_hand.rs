//! Lists for callers in this process: the objects as the store has them, and no message with a copy of each.
//!
//! Such a call goes the way of all others, past the rules and to the leader. Where that is this process's manager, what it has found is in
//! the extensions of its answer; an answer that came from elsewhere is a message as ever.

use std::sync::Arc;

/// In the extensions of a request: the caller knows [`InHand`].
#[derive(Debug, Clone, Copy)]
pub struct TakesInHand;

/// In the extensions of an answer, whose message is empty then.
#[derive(Debug, Clone)]
pub struct InHand<T>(pub Vec<Arc<T>>);
