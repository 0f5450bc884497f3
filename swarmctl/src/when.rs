//! Times and lengths of time for people.

use skep_types::Timestamp;
use std::time::Duration;

pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// `2026-11-22T10:00:00Z`, with as many decimals as there are.
pub fn rfc3339(at: Timestamp) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0))
        .ok()
        .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| at.0.to_string())
}

/// `less than a second`, `5 seconds`, `2 hours`: one unit is enough to know.
pub fn about(length: Duration) -> String {
    let seconds = length.as_secs();
    let (count, unit) = match seconds {
        0 => return "less than a second".into(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// `1m30s`, `500ms`, as Go writes them.
pub fn length(length: Duration) -> String {
    let seconds = length.as_secs();
    if length.is_zero() {
        return "0s".into();
    }
    if seconds == 0 {
        return format!("{}ms", length.as_secs_f64() * 1000.0);
    }
    let mut text = String::new();
    if seconds >= 3600 {
        text += &format!("{}h", seconds / 3600);
    }
    if seconds >= 60 {
        text += &format!("{}m", seconds / 60 % 60);
    }
    text + &format!("{}s", (seconds % 60) as f64 + f64::from(length.subsec_nanos()) / 1e9)
}

/// A point in time as `--since` takes it: RFC 3339, seconds since 1970, or a length of time before now (`10m`).
pub fn parse(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339) {
        return Ok(Timestamp(i64::try_from(at.unix_timestamp_nanos()).map_err(|_| format!("{text:?} is too far away"))?));
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(Timestamp::from_secs(seconds));
    }
    match crate::flags::duration(text) {
        Ok(before) => Ok(now() - before),
        Err(_) => Err(format!("{text:?} is not a time; write 2026-01-02T15:04:05Z, a Unix time, or a length such as 10m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_read_as_in_go() {
        assert_eq!(length(Duration::from_secs(5)), "5s");
        assert_eq!(length(Duration::from_secs(3690)), "1h1m30s");
        assert_eq!(length(Duration::from_millis(500)), "500ms");
        assert_eq!(about(Duration::from_secs(61)), "1 minute");
    }

    #[test]
    fn since_takes_three_forms() {
        assert_eq!(parse("1970-01-01T00:00:01Z"), Ok(Timestamp::from_secs(1)));
        assert_eq!(parse("7"), Ok(Timestamp::from_secs(7)));
        assert!(parse("10m").unwrap() < now());
        assert!(parse("yesterday").is_err());
    }
}
