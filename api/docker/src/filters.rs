//! `?filters=`: values of one key are alternatives, keys must all hold.

use crate::ApiError;
use serde_json::Value;
use skep_types::Labels;
use std::collections::BTreeMap;

/// What is asked for, by key. Empty: everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Two encodings: `{"name":{"web":true}}` of Go's clients and `{"name":["web"]}` of all others.
    pub(crate) fn parse(text: &str, keys: &[&str]) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let wrong = || ApiError::invalid("invalid filter");
        let Ok(Value::Object(object)) = serde_json::from_str(text) else { return Err(wrong()) };
        let mut filters = BTreeMap::new();
        for (key, values) in object {
            if !keys.contains(&key.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter '{key}'")));
            }
            let values: Option<Vec<String>> = match values {
                Value::Object(values) => {
                    Some(values.into_iter().filter(|(_, on)| *on == Value::Bool(true)).map(|(value, _)| value).collect())
                }
                Value::Array(values) => values.into_iter().map(|value| value.as_str().map(str::to_owned)).collect(),
                _ => None,
            };
            filters.insert(key, values.ok_or_else(wrong)?);
        }
        Ok(Self(filters))
    }

    /// The alternatives of a key; none: it does not matter.
    #[must_use]
    pub fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        !self.values(key).is_empty()
    }

    /// Whether the key does not matter or one of its values is one that `test` holds for.
    pub fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(|value| test(value))
    }

    /// [`Self::any`] with exactly one of the values.
    #[must_use]
    pub fn is(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| value == text)
    }

    /// [`Self::any`] with a beginning of the text.
    #[must_use]
    pub fn begins(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| text.starts_with(value))
    }

    /// Of secrets and configs the keys about ids and names are alternatives too: beginnings, and exact texts.
    #[must_use]
    pub fn any_kind(&self, beginnings: &[(&str, &str)], exact: &[(&str, &str)]) -> bool {
        let keys = || beginnings.iter().chain(exact);
        keys().all(|(key, _)| !self.has(key))
            || beginnings.iter().any(|(key, text)| self.has(key) && self.begins(key, text))
            || exact.iter().any(|(key, text)| self.has(key) && self.is(key, text))
    }

    /// [`Self::any`] with a part of the text; `^` and `$` stand for its ends. dockerd takes regular expressions here; of them only
    /// these are understood.
    #[must_use]
    pub fn part_of(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| match (value.strip_prefix('^'), value.strip_suffix('$')) {
            (Some(rest), Some(_)) => rest.strip_suffix('$') == Some(text),
            (Some(beginning), None) => text.starts_with(beginning),
            (None, Some(end)) => text.ends_with(end),
            (None, None) => text.contains(value),
        })
    }

    /// Whether all labels asked for under the key are there: `key`, or `key=value`.
    #[must_use]
    pub fn labels(&self, key: &str, labels: &Labels) -> bool {
        self.values(key).iter().all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
    }

    /// A key that is true or false, such as `dangling`; `None` if it does not matter.
    ///
    /// # Errors
    /// 400 for other values and for both at once.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let wrong = |value: &[String]| ApiError::invalid(format!("invalid filter '{key}={value:?}'"));
        match self.values(key) {
            [] => Ok(None),
            [value] if matches!(value.as_str(), "1" | "true") => Ok(Some(true)),
            [value] if matches!(value.as_str(), "0" | "false") => Ok(Some(false)),
            values => Err(wrong(values)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_are_read() {
        for text in [r#"{"name":{"web":true,"db":true,"off":false}}"#, r#"{"name":["db","web"]}"#] {
            let filters = Filters::parse(text, &["name"]).unwrap();
            let mut values = filters.values("name").to_vec();
            values.sort();
            assert_eq!(values, ["db", "web"]);
            assert!(filters.begins("name", "webber") && filters.is("name", "db") && !filters.is("name", "webber"));
        }
        assert_eq!(Filters::parse("{}", &[]).unwrap(), Filters::default());
    }

    #[test]
    fn unknown_keys_and_odd_json_are_refused() {
        assert_eq!(Filters::parse(r#"{"x":["y"]}"#, &["name"]).unwrap_err().message, "invalid filter 'x'");
        for odd in ["[", "[]", "null", r#"{"name":"web"}"#, r#"{"name":[1]}"#] {
            assert!(Filters::parse(odd, &["name"]).is_err(), "{odd}");
        }
    }

    #[test]
    fn parts_are_found_and_ends_are_marked() {
        let holds = |value: &str| Filters::parse(&format!("{{\"name\":[{value:?}]}}"), &["name"]).unwrap().part_of("name", "web_1");
        assert!(holds("web") && holds("b_") && holds("^web") && holds("1$") && holds("^web_1$"));
        assert!(!holds("^eb") && !holds("web$") && !holds("^web$") && !holds("x"));
    }

    #[test]
    fn all_labels_must_be_there() {
        let labels = Labels::from([("a".into(), "1".into()), ("b".into(), String::new())]);
        let holds = |text: &str| Filters::parse(text, &["label"]).unwrap().labels("label", &labels);
        assert!(holds(r#"{"label":["a","b="]}"#) && holds(r#"{"label":{"a=1":true}}"#) && holds("{}"));
        assert!(!holds(r#"{"label":["a","c"]}"#) && !holds(r#"{"label":["a=2"]}"#));
    }

    #[test]
    fn whatever_is_sent_is_read_or_refused() {
        let seeds = [r#"{"name":{"web":true}}"#, r#"{"label":["a=b","c"],"name":["^web$"]}"#, r#"{"name":["\u00e9\ud83d\ude00"]}"#];
        let labels = Labels::from([("a".into(), "b".into())]);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..20_000 {
            let mut bytes = seeds[round % seeds.len()].as_bytes().to_vec();
            // xorshift: the same mistakes every time. A few bytes are others, gone, or there twice.
            for _ in 0..=round % 4 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let place = usize::try_from(state >> 32).unwrap_or_default() % bytes.len();
                match state & 3 {
                    0 => drop(bytes.remove(place)),
                    1 => bytes.insert(place, bytes[place]),
                    _ => bytes[place] = state.to_le_bytes()[1],
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(filters) = Filters::parse(&text, &["name", "label"]) {
                // Questions are answered for whatever came through.
                let _ = (filters.part_of("name", "web"), filters.begins("name", "é"), filters.labels("label", &labels));
            }
        }
    }
}
