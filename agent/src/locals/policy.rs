//! What becomes of a container that is no task when its process has ended. Pure.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// As Docker's: the first pause before another attempt; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that ran so long was well: the next pause is the first again.
const WELL: Duration = Duration::from_secs(10);

/// When it is to be started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartWish {
    #[default]
    Never,
    /// After an exit code that is not 0, so many times; 0 = without limit.
    OnFailure {
        at_most: u32,
    },
    Always,
    /// Also after a restart of the daemon, unless somebody had stopped it.
    UnlessStopped,
}

/// How a life ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct End {
    pub exit_code: i32,
    /// Somebody stopped or killed it.
    pub is_by_hand: bool,
    pub ran: Duration,
}

/// What is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Rest,
    Again(Duration),
}

/// Starts again that count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restarts {
    /// Since somebody started it.
    pub count: u32,
    /// In a row, each after a short life.
    pub short: u32,
}

impl RestartWish {
    fn wants(self, exit_code: i32, count: u32) -> bool {
        match self {
            Self::Never => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure { at_most } => exit_code != 0 && (at_most == 0 || count < at_most),
        }
    }

    /// After the end of a process, while the daemon looks on.
    #[must_use]
    pub fn after(self, end: End, restarts: &mut Restarts) -> Next {
        if end.is_by_hand || !self.wants(end.exit_code, restarts.count) {
            return Next::Rest;
        }
        restarts.short = if end.ran >= WELL { 0 } else { restarts.short };
        let pause = FIRST_PAUSE.saturating_mul(1 << restarts.short.min(16)).min(LONGEST_PAUSE);
        (restarts.count, restarts.short) = (restarts.count.saturating_add(1), restarts.short.saturating_add(1));
        Next::Again(pause)
    }

    /// When the daemon begins and finds no process of one that had one before.
    #[must_use]
    pub fn at_begin(self, exit_code: i32, is_by_hand: bool, restarts: Restarts) -> bool {
        // As dockerd: `always` means that whoever stopped it did so until the next start.
        self.wants(exit_code, restarts.count) && (!is_by_hand || self == Self::Always)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit_code: i32, is_by_hand: bool, seconds: u64) -> End {
        End { exit_code, is_by_hand, ran: Duration::from_secs(seconds) }
    }

    #[test]
    fn the_wish_and_the_exit_code_decide() {
        let next = |wish: RestartWish, end| wish.after(end, &mut Restarts::default()) != Next::Rest;
        assert!(!next(RestartWish::Never, end(1, false, 0)));
        assert!(next(RestartWish::Always, end(0, false, 0)) && !next(RestartWish::Always, end(0, true, 0)));
        let on_failure = RestartWish::OnFailure { at_most: 0 };
        assert!(next(on_failure, end(1, false, 0)) && !next(on_failure, end(0, false, 0)));
        let mut restarts = Restarts::default();
        let twice = RestartWish::OnFailure { at_most: 2 };
        let all: Vec<bool> = (0..3).map(|_| twice.after(end(1, false, 0), &mut restarts) != Next::Rest).collect();
        assert_eq!((all, restarts.count), (vec![true, true, false], 2));
    }

    #[test]
    fn pauses_grow_and_a_long_life_makes_them_short_again() {
        let mut restarts = Restarts::default();
        let mut pause = |seconds| RestartWish::Always.after(end(1, false, seconds), &mut restarts);
        let millis = |number| Next::Again(Duration::from_millis(number));
        assert_eq!([pause(0), pause(0), pause(1)], [millis(100), millis(200), millis(400)]);
        assert_eq!([pause(10), pause(0)], [millis(100), millis(200)]);
        let longest = (0..40).map(|_| pause(0)).last();
        assert_eq!(longest, Some(Next::Again(LONGEST_PAUSE)));
    }

    #[test]
    fn a_new_daemon_starts_what_nobody_stopped() {
        let begins = |wish: RestartWish, by_hand| wish.at_begin(137, by_hand, Restarts::default());
        assert!(begins(RestartWish::Always, true) && begins(RestartWish::Always, false));
        assert!(!begins(RestartWish::UnlessStopped, true) && begins(RestartWish::UnlessStopped, false));
        assert!(!begins(RestartWish::Never, false));
        assert!(!RestartWish::OnFailure { at_most: 0 }.at_begin(0, false, Restarts::default()));
    }
}
