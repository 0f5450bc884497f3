//! What a service's log driver asks for.

use crate::error::ExecError;
use serde::{Deserialize, Serialize};
use skep_types::Driver;

/// How the output of one task is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// Bytes after which a new file is begun.
    pub max_size: u64,
    /// Files kept, the current one included.
    pub max_file: u32,
    /// Nothing is kept at all.
    pub discard: bool,
}

impl Default for LogOptions {
    /// Bounded, unlike Docker's: a chatty task must not fill the disk.
    fn default() -> Self {
        Self { max_size: 10 * 1024 * 1024, max_file: 3, discard: false }
    }
}

impl LogOptions {
    /// # Errors
    /// A driver or an option that this node does not have, by name.
    pub fn of(driver: Option<&Driver>) -> Result<Self, ExecError> {
        let mut options = Self::default();
        let Some(driver) = driver else { return Ok(options) };
        match driver.name.as_str() {
            "" | "json-file" => {}
            "none" => options.discard = true,
            name => return Err(ExecError::LogDriver { name: name.to_owned() }),
        }
        for (name, value) in &driver.options {
            let bad = |problem| ExecError::LogOption { option: format!("{name}={value}"), problem };
            match name.as_str() {
                "max-size" => {
                    let bytes = size(value).filter(|bytes| *bytes >= 1024);
                    options.max_size = bytes.ok_or_else(|| bad("is not a size of at least 1k such as 500k, 10m or 1g"))?;
                }
                "max-file" => {
                    let count = value.parse().ok().filter(|count| (1..=1000).contains(count));
                    options.max_file = count.ok_or_else(|| bad("is not a number within 1..=1000"))?;
                }
                _ => return Err(bad("is not known; there are max-size and max-file")),
            }
        }
        Ok(options)
    }
}

/// As Docker's: a number with an optional unit, in powers of 1024.
fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (number, unit) = match text.chars().last()? {
        'k' => (&text[..text.len() - 1], 1 << 10),
        'm' => (&text[..text.len() - 1], 1 << 20),
        'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    number.trim().parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, options: &[(&str, &str)]) -> Result<LogOptions, ExecError> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        LogOptions::of(Some(&Driver { name: name.into(), options }))
    }

    #[test]
    fn known_options_are_taken_and_others_refused_by_name() {
        let options = of("json-file", &[("max-size", "500k"), ("max-file", "2")]).unwrap();
        assert_eq!(options, LogOptions { max_size: 500 * 1024, max_file: 2, discard: false });
        assert!(of("none", &[]).unwrap().discard);
        assert_eq!(
            of("syslog", &[]).unwrap_err().to_string(),
            "log driver \"syslog\" is not supported by this node; use json-file or none"
        );
        assert_eq!(
            of("", &[("compress", "true")]).unwrap_err().to_string(),
            "log option compress=true: is not known; there are max-size and max-file"
        );
        assert!(of("json-file", &[("max-size", "-1")]).is_err());
        assert!(of("json-file", &[("max-file", "0")]).is_err());
    }
}
