//! Values as people type them: sizes, CPUs, durations, key=value pairs.

use std::time::Duration;

/// `10s`, `1m30s`, `1.5h`, `200ms`; a bare number is refused, as the docker CLI does. `0` needs no unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write for example 10s, 1m30s, 200ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let number: f64 = rest[..number_end].parse().map_err(|_| wrong())?;
        let unit_text = &rest[number_end..];
        let unit_end = unit_text.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit_text.len());
        let unit = match &unit_text[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        seconds += number * unit;
        rest = &unit_text[unit_end..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// What the kernel and the hosts file can have, before placeholders are filled in: nothing that nobody can see, as the Docker API refuses it.
pub fn host_name(text: &str) -> Result<String, String> {
    match text.chars().find(|character| character.is_control()) {
        None => Ok(text.to_owned()),
        Some(character) => Err(format!("it has the character {character:?}; give a name without it")),
    }
}

/// `512m`, `2g`, `1048576`, `64MiB`, `0`; binary units, as Docker's. Result in bytes.
pub fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a size; write for example 512m, 2g or a number of bytes");
    let lower = text.trim().to_ascii_lowercase();
    let digits_end = lower.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(lower.len());
    let number: f64 = lower[..digits_end].parse().map_err(|_| wrong())?;
    let factor = match lower[digits_end..].trim() {
        "" | "b" => 1u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let value = number * factor as f64;
    if value < 0.0 || value >= i64::MAX as f64 {
        return Err(wrong());
    }
    Ok(value as i64)
}

/// `0.5`, `2`: CPUs, in billionths.
pub fn nano_cpus(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a number of CPUs; write for example 0.5");
    let cpus: f64 = text.parse().map_err(|_| wrong())?;
    if !cpus.is_finite() || !(0.0..=1e9).contains(&cpus) {
        return Err(wrong());
    }
    Ok((cpus * 1e9).round() as i64)
}

/// `key=value`, or `key` alone for an empty value.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.trim().is_empty() {
        return Err(format!("{text:?} has no key before '='"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The `a=b,c=d` form of `--mount`, `--publish`, `--secret`…: each field once, quotes as in CSV.
pub fn fields(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    for part in csv(text)? {
        let (key, value) = part.split_once('=').map_or((part.as_str(), ""), |(key, value)| (key, value));
        found.push((key.trim().to_ascii_lowercase(), value.to_owned()));
    }
    Ok(found)
}

fn csv(text: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                parts.last_mut().expect("never empty").push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => parts.push(String::new()),
            other => parts.last_mut().expect("never empty").push(other),
        }
    }
    if quoted {
        return Err(format!("{text:?} has an opening quote without a closing one"));
    }
    Ok(parts)
}

/// `true`/`1`/`` and `false`/`0`.
pub fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(format!("{key}={other}: write true or false")),
    }
}

/// Splits a command line as a shell would, without expansions.
pub fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => match characters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err(format!("{text:?} ends with a backslash")),
            },
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, c @ ('"' | '\'')) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("{text:?} has an opening quote without a closing one"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_have_no_control_characters() {
        for good in ["", "web", "{{.Node.Hostname}}-{{.Task.Slot}}", "é"] {
            assert_eq!(host_name(good).unwrap(), good);
        }
        for (bad, named) in [("a\nb", "'\\n'"), ("a\0", "'\\0'"), ("\u{7f}x", "'\\u{7f}'")] {
            let error = host_name(bad).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn durations_read_as_in_go() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "10", "-1s", "1y", "s", "1e9h", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(bytes("512m"), Ok(512 << 20));
        assert_eq!(bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(bytes("7"), Ok(7));
        for wrong in ["", "m", "1x", "-1", "1e30", "99999999999t"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cpus_are_counted_in_billionths() {
        assert_eq!(nano_cpus("0.5"), Ok(500_000_000));
        for wrong in ["", "-1", "nan", "inf", "1e30"] {
            assert!(nano_cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quoted_commas_do_not_separate() {
        assert_eq!(fields(r#"type=volume,"volume-opt=o=a,b",ro"#).unwrap()[1], ("volume-opt".into(), "o=a,b".into()));
        assert!(fields("\"open").is_err());
    }

    #[test]
    fn a_command_line_is_split_as_a_shell_does() {
        assert_eq!(words(r#"sh -c "echo 'a b' \"c\"""#).unwrap(), ["sh", "-c", "echo 'a b' \"c\""]);
        assert_eq!(words("").unwrap(), Vec::<String>::new());
        assert!(words("'open").is_err());
    }
}
