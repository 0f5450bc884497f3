//! The query of a request: what kinds of booleans there are, numbers, lists.

use crate::filters::Filters;
use crate::{ApiError, when};
use axum::extract::FromRequestParts;
use http::request::Parts;
use skep_types::Timestamp;
use std::convert::Infallible;
use std::str::FromStr;

/// The pairs in their order. A handler takes it as an argument.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Query {
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first of this name, `None` if it is absent or empty.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.given(name).filter(|value| !value.is_empty())
    }

    /// The first of this name, be it empty.
    #[must_use]
    pub fn given(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// True unless absent, empty, `0`, `no`, `false` or `none`: parameters of containers, images, volumes and logs.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.is_or(name, false)
    }

    /// The same, with what an absent one means.
    #[must_use]
    pub fn is_or(&self, name: &str, absent: bool) -> bool {
        let Some(value) = self.given(name) else { return absent };
        !matches!(value.trim().to_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// As Go's `strconv.ParseBool`; an absent or empty one is false.
    ///
    /// # Errors
    /// 400 for anything else.
    pub fn strict(&self, name: &str) -> Result<bool, ApiError> {
        match self.text(name) {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some(value) => Err(ApiError::invalid(format!("invalid {name}: strconv.ParseBool: parsing {value:?}: invalid syntax"))),
        }
    }

    /// A number, `None` if absent or empty.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| ApiError::invalid(format!("invalid {name}: parsing {value:?}: invalid syntax")))
    }

    /// A point in time, see [`when::moment`]; `None` if absent, empty or 0.
    ///
    /// # Errors
    /// 400 naming the text.
    pub fn time(&self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        when::moment(text, when::now()).map(|at| (at != Timestamp::default()).then_some(at))
    }

    /// The version that an update was decided on.
    ///
    /// # Errors
    /// 400 with dockerd's words; `what` is such as `service`.
    pub fn version(&self, what: &str) -> Result<u64, ApiError> {
        let value = self.given("version").unwrap_or_default();
        value.parse().map_err(|_| {
            ApiError::invalid(format!("invalid {what} version '{value}': strconv.ParseUint: parsing {value:?}: invalid syntax"))
        })
    }

    /// `?filters=`, in which only these keys may be.
    ///
    /// # Errors
    /// 400 for JSON that cannot be read and for other keys.
    pub fn filters(&self, keys: &[&str]) -> Result<Filters, ApiError> {
        Filters::parse(self.given("filters").unwrap_or_default(), keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_zero_is_none() {
        let time = |text: &str| Query::parse(text).time("since").map(|at| at.map(|at| at.0));
        assert_eq!((time(""), time("since="), time("since=0"), time("since=0.0")), (Ok(None), Ok(None), Ok(None), Ok(None)));
        assert_eq!(time("since=1.5"), Ok(Some(1_500_000_000)));
        assert!(time("since=x").is_err());
    }

    #[test]
    fn there_are_two_kinds_of_booleans() {
        let query = Query::parse("a=1&b=no&c&d=%20False&e=yes&f=T&g=2");
        let loose = |name| query.is(name);
        assert_eq!([loose("a"), loose("b"), loose("c"), loose("d"), loose("e"), loose("x")], [true, false, false, false, true, false]);
        assert!(query.is_or("x", true) && !query.is_or("c", true));
        assert_eq!([query.strict("a").unwrap(), query.strict("f").unwrap(), query.strict("x").unwrap()], [true, true, false]);
        assert!(query.strict("g").is_err() && query.strict("e").is_err());
    }

    #[test]
    fn a_version_is_refused_in_words_that_clients_know() {
        let refused = Query::parse("").version("service").unwrap_err();
        assert!(refused.message.starts_with("invalid service version ''"), "{refused}");
        assert_eq!(Query::parse("version=7").version("node").unwrap(), 7);
    }
}
