//! Signals by name and number.

use crate::error::ExecError;
use crate::executor::ImageReady;
use nix::sys::signal::Signal;
use skep_types::ContainerSpec;
use std::str::FromStr;

/// With which a container is asked to end: the user's, or the image's.
pub(super) fn stop_signal(spec: &ContainerSpec, image: &ImageReady) -> Result<i32, ExecError> {
    let given = [&spec.stop_signal, &image.config.stop_signal].into_iter().find(|text| !text.is_empty());
    given.map_or(Ok(libc::SIGTERM), |text| signal_number(text))
}

/// `SIGTERM`, `TERM`, `15`, `RTMIN+3`.
pub(crate) fn signal_number(text: &str) -> Result<i32, ExecError> {
    let bad = || ExecError::BadSpec { field: "stop_signal", problem: format!("there is no signal {text:?}") };
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        // 34: the first that libc leaves to programs.
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+').and_then(|n| n.parse().ok()).ok_or_else(bad)? };
        return if (0..=30).contains(&offset) { Ok(34 + offset) } else { Err(bad()) };
    }
    Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        assert_eq!(signal_number("SIGQUIT").unwrap(), 3);
        assert_eq!(signal_number("term").unwrap(), 15);
        assert_eq!(signal_number("9").unwrap(), 9);
        assert_eq!(signal_number("SIGRTMIN+3").unwrap(), 37);
        for text in ["SIGNONE", "0", "65", "-9", "RTMIN+99", "RTMIN-1"] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }
}
