//! Credentials for one pull, as Docker and SwarmKit hand them on.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::digest::Digest;

/// Docker's own name for the default registry in credentials (`registry.IndexServer`).
const DOCKER_HUB_ADDRESSES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "docker.io"];

/// More than any token in use, less than would hurt.
const MAX_LENGTH: usize = 64 * 1024;

/// User and password, or an identity token, for one registry. Never printed, not by `Debug` either.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    kind: Kind,
    /// The registry the credentials were meant for; empty when the sender did not say.
    server: String,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Password {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token that is traded for an access token.
    IdentityToken(String),
    /// An access token for the registry itself.
    RegistryToken(String),
}

/// Credentials that cannot be read. Says nothing of their content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("registry credentials are longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("registry credentials are not base64url as Docker's X-Registry-Auth; log in again")]
    NotBase64,
    #[error("registry credentials are not the JSON object of Docker's X-Registry-Auth; log in again")]
    NotJson,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// `base64(user:password)`, as in `~/.docker/config.json`.
    #[serde(default)]
    auth: String,
    #[serde(default, alias = "serverAddress")]
    serveraddress: String,
    #[serde(default, alias = "identityToken")]
    identitytoken: String,
    #[serde(default, alias = "registryToken")]
    registrytoken: String,
}

impl Auth {
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { kind: Kind::Password { username: username.into(), password: password.into() }, server: String::new() }
    }

    /// Reads `X-Registry-Auth` or SwarmKit's `pull_options.registry_auth`: base64url of a JSON object.
    ///
    /// `None` when it is empty or holds no credentials: Docker sends `{}` (`e30=`) for an anonymous pull.
    pub fn parse(encoded: &str) -> Result<Option<Self>, AuthError> {
        if encoded.len() > MAX_LENGTH {
            return Err(AuthError::TooLong);
        }
        let encoded = encoded.trim();
        if encoded.is_empty() {
            return Ok(None);
        }
        let json = decode_base64(encoded).ok_or(AuthError::NotBase64)?;
        let wire: Wire = serde_json::from_slice(&json).map_err(|_| AuthError::NotJson)?;
        let server = wire.serveraddress;
        let kind = if !wire.identitytoken.is_empty() {
            Kind::IdentityToken(wire.identitytoken)
        } else if !wire.registrytoken.is_empty() {
            Kind::RegistryToken(wire.registrytoken)
        } else if !wire.username.is_empty() || !wire.password.is_empty() {
            Kind::Password { username: wire.username, password: wire.password }
        } else if !wire.auth.is_empty() {
            let pair = decode_base64(&wire.auth).ok_or(AuthError::NotBase64)?;
            let pair = String::from_utf8(pair).map_err(|_| AuthError::NotBase64)?;
            let (username, password) = pair.split_once(':').ok_or(AuthError::NotBase64)?;
            Kind::Password { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() }
        } else {
            return Ok(None);
        };
        Ok(Some(Self { kind, server }))
    }

    /// Whether the sender meant these credentials for the registry `domain`; others must never see them.
    pub fn is_for(&self, domain: &str) -> bool {
        let server = self.server.trim_start_matches("https://").trim_start_matches("http://");
        let host = server.split('/').next().unwrap_or_default();
        host.is_empty()
            || host.eq_ignore_ascii_case(domain)
            || (DOCKER_HUB_ADDRESSES.contains(&host) && DOCKER_HUB_ADDRESSES.contains(&domain))
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Tells credentials apart without keeping them: pulls are shared only among equals.
    pub(crate) fn fingerprint(&self) -> Digest {
        let text = match &self.kind {
            Kind::Password { username, password } => format!("p\0{username}\0{password}"),
            Kind::IdentityToken(token) => format!("i\0{token}"),
            Kind::RegistryToken(token) => format!("r\0{token}"),
        };
        Digest::of(text.as_bytes())
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(hidden)")
    }
}

/// Docker's clients write base64url with padding, docker-py the standard alphabet, some neither pad.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&alphabet::URL_SAFE, config)
        .decode(text)
        .or_else(|_| GeneralPurpose::new(&alphabet::STANDARD, config).decode(text))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};

    #[test]
    fn dockers_header_is_read_in_all_alphabets() {
        let json = r#"{"username":"me","password":"p?~>ss","serveraddress":"https://index.docker.io/v1/"}"#;
        for engine in [BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD, BASE64_STANDARD] {
            let auth = Auth::parse(&engine.encode(json)).unwrap().unwrap();
            assert!(matches!(auth.kind(), Kind::Password { username, password } if username == "me" && password == "p?~>ss"));
            assert!(auth.is_for("docker.io"));
            assert!(!auth.is_for("evil.example"));
        }
    }

    #[test]
    fn identity_tokens_and_config_pairs_are_read() {
        let token = BASE64_URL_SAFE.encode(r#"{"identitytoken":"t"}"#);
        assert!(matches!(Auth::parse(&token).unwrap().unwrap().kind(), Kind::IdentityToken(t) if t == "t"));
        let pair = format!(r#"{{"auth":"{}"}}"#, BASE64_STANDARD.encode("u:p:q"));
        let auth = Auth::parse(&BASE64_URL_SAFE.encode(pair)).unwrap().unwrap();
        assert!(matches!(auth.kind(), Kind::Password { username, password } if username == "u" && password == "p:q"));
    }

    #[test]
    fn an_empty_object_is_an_anonymous_pull() {
        assert_eq!(Auth::parse(""), Ok(None));
        assert_eq!(Auth::parse("e30="), Ok(None));
    }

    #[test]
    fn rubbish_is_refused_without_being_repeated() {
        assert_eq!(Auth::parse("!secret!"), Err(AuthError::NotBase64));
        assert_eq!(Auth::parse(&BASE64_URL_SAFE.encode("secret")), Err(AuthError::NotJson));
        assert_eq!(Auth::parse(&"a".repeat(MAX_LENGTH + 1)), Err(AuthError::TooLong));
        assert!(!format!("{:?}", Auth::password("me", "secret")).contains("secret"));
    }
}
