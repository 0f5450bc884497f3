//! Points in time as clients name them: `since`, `until`.

use crate::ApiError;
use skep_types::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// By this machine's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Seconds since 1970 with or without a fraction, RFC 3339 with or without its end, or how long ago as Go writes it (`1h30m`).
///
/// # Errors
/// 400 naming the text.
pub(crate) fn moment(text: &str, now: Timestamp) -> Result<Timestamp, ApiError> {
    if let Some(at) = unix(text).or_else(|| date(text)) {
        return Ok(at);
    }
    let ago = go_duration(text).ok_or_else(|| {
        ApiError::invalid(format!(
            "{text:?} is no point in time; give seconds since 1970, RFC 3339 such as 2026-01-02T15:04:05Z, or how long ago, such as 1h30m"
        ))
    })?;
    Ok(now - ago)
}

/// `1700000000.000000123`: the fraction is of nanoseconds with leading zeros.
fn unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !is_number(seconds.strip_prefix('-').unwrap_or(seconds)) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    Some(Timestamp(seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)?))
}

fn date(text: &str) -> Option<Timestamp> {
    // Any end may be left out; without a zone it is UTC.
    let tail = "0000-01-01T00:00:00Z";
    let full = match text.len() {
        4 | 7 | 10 | 13 | 16 | 19 => format!("{text}{}", &tail[text.len()..]),
        _ if text.ends_with('Z') || text.get(19..).is_some_and(|zone| zone.contains(['+', '-'])) => text.to_owned(),
        _ => format!("{text}Z"),
    };
    let at = OffsetDateTime::parse(&full, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos()).ok().map(Timestamp)
}

/// `1h30m`, `1.5s`, `300ms`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * factor;
        rest = tail;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_a_time_is_understood() {
        let now = Timestamp::from_secs(1_700_000_000);
        let at = |text: &str| moment(text, now).unwrap().0;
        assert_eq!(at("1700000000"), now.0);
        assert_eq!(at("1700000000.000000005"), now.0 + 5);
        assert_eq!(at("1700000000.5"), now.0 + 500_000_000);
        assert_eq!(at("2023-11-14T22:13:20Z"), now.0);
        assert_eq!(at("2023-11-14T22:13:20.5+00:00"), now.0 + 500_000_000);
        assert_eq!(at("2023-11-14T22:13:20"), now.0);
        assert_eq!(at("2023-11-14"), Timestamp::from_secs(1_699_920_000).0);
        assert_eq!(at("1h30m"), Timestamp::from_secs(1_700_000_000 - 5400).0);
        assert_eq!(at("1.5s"), now.0 - 1_500_000_000);
        assert!(["", "x", "1x", "h", "yesterday", "1.2.3"].iter().all(|text| moment(text, now).is_err()));
    }

    #[test]
    fn whatever_is_said_is_a_time_or_refused() {
        let now = Timestamp::from_secs(1_700_000_000);
        for odd in ["-", "-.", ".", "9223372036854775808", "99999999999h", "1e400s", "é", "0000-00-00", "2023-11-1é", "µs", "-1h", "1.h.s"]
        {
            let _ = moment(odd, now); // either, but no panic
        }
        let letters: Vec<char> = "0123456789.-+:TZhmsnuµé \0".chars().collect();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            loop {
                // xorshift: the same texts every time.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let pick = usize::try_from(state >> 40).unwrap_or_default();
                text.push(letters[pick % letters.len()]);
                if pick % 13 == 0 {
                    break;
                }
            }
            let _ = moment(&text, now);
        }
    }
}
