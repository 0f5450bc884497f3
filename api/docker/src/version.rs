//! The API's version, as clients name it in the path.

use axum::extract::FromRequestParts;
use http::request::Parts;
use std::convert::Infallible;
use std::fmt;

/// As in `/v1.44/…`. A handler that takes it as an argument gets the request's, the newest where the path names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    pub major: u32,
    pub minor: u32,
}

impl ApiVersion {
    /// What the genuine client 28 speaks.
    pub const MAX: Self = Self::v1(50);
    /// The oldest that clients of today pin.
    pub const MIN: Self = Self::v1(24);

    #[must_use]
    pub const fn v1(minor: u32) -> Self {
        Self { major: 1, minor }
    }

    /// `1.44`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?;
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.major, self.minor)
    }
}

impl<S: Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(Self::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_two_numbers() {
        assert_eq!(ApiVersion::parse("1.44"), Some(ApiVersion::v1(44)));
        assert!(["", "1", "1.", ".4", "1.4.1", "1.-4", "1.+4", "a.b"].into_iter().all(|text| ApiVersion::parse(text).is_none()));
        assert!(ApiVersion::v1(9) < ApiVersion::v1(10));
    }
}
