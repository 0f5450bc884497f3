//! The registry client over HTTP.

mod upload; // the writing half

use std::collections::HashMap;
use std::error::Error as _;
use std::io;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::endpoint::{Endpoint, RegistryConfig};
use super::{BlobStream, FetchedManifest, OutgoingBlob, Registry, RegistryError};
use crate::auth::{Auth, Kind};
use crate::digest::Digest;
use crate::manifest::{MAX_MANIFEST, media};
use crate::reference::Reference;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer; a transfer that moves may take as long as it needs.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// For a whole small answer: manifests and tokens.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_TOKEN_ANSWER: u64 = 256 * 1024;
/// When a token does not say how long it lives (distribution `token` specification).
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);
/// One per repository and credentials in use; more means that old ones were never dropped.
const MAX_TOKENS: usize = 256;

/// Speaks HTTP(S) to registries. Keeps connections and access tokens for later pulls, credentials never.
pub struct HttpRegistry {
    config: RegistryConfig,
    clients: OnceLock<Clients>,
    tokens: Mutex<HashMap<TokenKey, Token>>,
}

struct Clients {
    reading: Pair,
    /// Nothing is read while a blob is sent, so these have no limit between two pieces of an answer.
    sending: Pair,
}

struct Pair {
    /// Obeys the proxy settings of the environment.
    outside: Client,
    /// Loopback is never reached through a proxy.
    loopback: Client,
}

impl Pair {
    fn new(builder: impl Fn() -> reqwest::ClientBuilder) -> Result<Self, RegistryError> {
        let build = |builder: reqwest::ClientBuilder| builder.build().map_err(|source| RegistryError::Client { source });
        Ok(Self { outside: build(builder())?, loopback: build(builder().no_proxy())? })
    }

    fn towards(&self, endpoint: &Endpoint) -> &Client {
        if endpoint.loopback { &self.loopback } else { &self.outside }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    repository: String,
    credentials: Option<Digest>,
}

#[derive(Clone)]
struct Token {
    authorization: HeaderValue,
    good_until: Instant,
}

/// Everything a request to one repository needs.
struct Target<'a> {
    endpoint: Endpoint,
    image: String,
    path: &'a str,
    repository: String,
    auth: Option<&'a Auth>,
    /// Credentials came along but are for another registry, which matters only if this one wants any.
    foreign_auth: bool,
}

impl HttpRegistry {
    pub fn new(config: RegistryConfig) -> Self {
        Self { config, clients: OnceLock::new(), tokens: Mutex::default() }
    }

    /// Whether the registry takes these credentials, or wants none.
    ///
    /// # Errors
    /// [`RegistryError::Unauthorised`] if it refuses them.
    pub async fn log_in(&self, domain: &str, auth: &Auth) -> Result<(), RegistryError> {
        let endpoint = Endpoint::of(domain, &self.config);
        let url = format!("{}/v2/", endpoint.base());
        let (image, repository) = ("a log-in".to_owned(), domain.to_owned());
        let target = Target { endpoint, image, path: "", repository, auth: Some(auth), foreign_auth: false };
        let response = self.send(&target, |client| client.get(&url).timeout(ANSWER_TIMEOUT)).await?;
        match response.status() {
            StatusCode::FORBIDDEN => Err(target.denied()),
            status if status.is_success() => Ok(()),
            _ => Err(target.refused(&response)),
        }
    }

    fn target<'a>(&self, reference: &'a Reference, auth: Option<&'a Auth>) -> Target<'a> {
        let fitting = auth.filter(|auth| auth.is_for(reference.domain()));
        Target {
            endpoint: Endpoint::of(reference.domain(), &self.config),
            image: reference.to_string(),
            path: reference.path(),
            repository: reference.repository(),
            auth: fitting,
            foreign_auth: auth.is_some() && fitting.is_none(),
        }
    }

    fn clients(&self) -> Result<&Clients, RegistryError> {
        Ok(match self.clients.get() {
            Some(clients) => clients,
            None => {
                // reqwest panics without one; we would rather say so.
                if rustls::crypto::CryptoProvider::get_default().is_none() {
                    return Err(RegistryError::NoTlsProvider);
                }
                let made = Clients { reading: Pair::new(|| builder().read_timeout(READ_TIMEOUT))?, sending: Pair::new(builder)? };
                self.clients.get_or_init(|| made)
            }
        })
    }

    /// Sends a request, and once more with what the registry asked for if it answers 401.
    async fn send(&self, target: &Target<'_>, build: impl Fn(&Client) -> RequestBuilder) -> Result<Response, RegistryError> {
        let client = self.clients()?.reading.towards(&target.endpoint);
        self.send_by(client, target, build).await
    }

    /// The same for a request that takes long to send; it must have a limit of its own.
    async fn send_slowly(&self, target: &Target<'_>, build: impl Fn(&Client) -> RequestBuilder) -> Result<Response, RegistryError> {
        let client = self.clients()?.sending.towards(&target.endpoint);
        self.send_by(client, target, build).await
    }

    async fn send_by(
        &self,
        client: &Client,
        target: &Target<'_>,
        build: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let key = TokenKey { repository: target.repository.clone(), credentials: target.auth.map(Auth::fingerprint) };
        let mut authorization = self.known_token(&key);
        let mut asked_anew = false;
        loop {
            let mut request = build(client);
            if let Some(value) = &authorization {
                request = request.header(header::AUTHORIZATION, value.clone());
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) => return Err(explain(error, &target.endpoint).await),
            };
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            if asked_anew {
                return Err(target.denied());
            }
            let values = response.headers().get_all(header::WWW_AUTHENTICATE);
            let challenge = challenge::parse(values.iter().filter_map(|value| value.to_str().ok()))
                .ok_or_else(|| target.bad_challenge("neither Basic nor Bearer"))?;
            let token = self.answer(target, client, challenge).await?;
            authorization = Some(token.authorization.clone());
            self.keep_token(key.clone(), token);
            asked_anew = true;
        }
    }

    async fn answer(&self, target: &Target<'_>, client: &Client, challenge: Challenge) -> Result<Token, RegistryError> {
        let for_an_hour = Instant::now() + Duration::from_secs(3600);
        match (challenge, target.auth.map(Auth::kind)) {
            (_, Some(Kind::RegistryToken(token))) => {
                Ok(Token { authorization: target.secret(format!("Bearer {token}"))?, good_until: for_an_hour })
            }
            (Challenge::Basic, Some(Kind::Password { username, password })) => {
                let pair = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("{username}:{password}"));
                Ok(Token { authorization: target.secret(format!("Basic {pair}"))?, good_until: for_an_hour })
            }
            (Challenge::Basic, _) => Err(target.denied()),
            (Challenge::Bearer { realm, service, scope }, kind) => self.fetch_token(target, client, &realm, service, scope, kind).await,
        }
    }

    /// The distribution token protocol: GET with Basic for a password, POST of an OAuth2 form for an identity token.
    async fn fetch_token(
        &self,
        target: &Target<'_>,
        client: &Client,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        kind: Option<&Kind>,
    ) -> Result<Token, RegistryError> {
        let mut realm = realm_url(realm, &target.endpoint).map_err(|problem| target.bad_challenge(problem))?;
        // Whoever only logs in wants access to nothing yet.
        let scope = scope.or_else(|| (!target.path.is_empty()).then(|| format!("repository:{}:pull", target.path)));
        let mut fields: Vec<(&str, String)> = scope.map(|scope| ("scope", scope)).into_iter().collect();
        fields.extend(service.map(|service| ("service", service)));
        let request = if let Some(Kind::IdentityToken(token)) = kind {
            fields.push(("grant_type", "refresh_token".to_owned()));
            fields.push(("client_id", "skep".to_owned()));
            fields.push(("refresh_token", token.clone()));
            let mut form = Url::parse("form:").expect("a constant URL");
            form.query_pairs_mut().extend_pairs(&fields);
            let body = form.query().unwrap_or_default().to_owned();
            client.post(realm).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
        } else {
            realm.query_pairs_mut().extend_pairs(&fields);
            let request = client.get(realm);
            match kind {
                Some(Kind::Password { username, password }) => request.basic_auth(username, Some(password)),
                _ => request,
            }
        };
        let response = match request.timeout(ANSWER_TIMEOUT).send().await {
            Ok(response) => response,
            Err(error) => return Err(explain(error, &target.endpoint).await),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => return Err(target.denied()),
            _ => return Err(target.refused(&response)),
        }
        let body = read_limited(response, MAX_TOKEN_ANSWER, &target.endpoint).await?;
        target.token_from(&body)
    }

    fn known_token(&self, key: &TokenKey) -> Option<HeaderValue> {
        let tokens = self.tokens.lock().expect("no panic while held");
        tokens.get(key).filter(|token| token.good_until > Instant::now()).map(|token| token.authorization.clone())
    }

    fn keep_token(&self, key: TokenKey, token: Token) {
        let mut tokens = self.tokens.lock().expect("no panic while held");
        if tokens.len() >= MAX_TOKENS {
            let now = Instant::now();
            tokens.retain(|_, token| token.good_until > now);
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        tokens.insert(key, token);
    }
}

#[async_trait]
impl Registry for HttpRegistry {
    async fn manifest(&self, reference: &Reference, version: &str, auth: Option<&Auth>) -> Result<FetchedManifest, RegistryError> {
        let target = self.target(reference, auth);
        let url = format!("{}/v2/{}/manifests/{version}", target.endpoint.base(), target.path);
        let accept = media::MANIFESTS.join(", ");
        let build = |client: &Client| client.get(&url).header(header::ACCEPT, &accept).timeout(ANSWER_TIMEOUT);
        let response = self.send(&target, build).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(RegistryError::NoSuchImage { image: target.image }),
            StatusCode::FORBIDDEN => return Err(target.denied()),
            _ => return Err(target.refused(&response)),
        }
        let named = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(|text| text.trim().to_owned());
        let media_type = named("content-type").and_then(|text| text.split(';').next().map(|t| t.trim().to_owned()));
        let promised = named("docker-content-digest");
        let data = read_limited(response, MAX_MANIFEST, &target.endpoint).await?;
        let digest = Digest::of(&data);
        let asked = Some(version.to_owned()).filter(|version| version.starts_with("sha256:"));
        let promised = promised.filter(|promised| promised.starts_with("sha256:"));
        for expected in [asked, promised].into_iter().flatten() {
            if expected != digest.to_string() {
                return Err(RegistryError::WrongDigest { host: target.endpoint.host, expected, actual: digest });
            }
        }
        Ok(FetchedManifest { data, digest, media_type })
    }

    async fn blob(&self, reference: &Reference, digest: &Digest, offset: u64, auth: Option<&Auth>) -> Result<BlobStream, RegistryError> {
        let target = self.target(reference, auth);
        let url = format!("{}/v2/{}/blobs/{digest}", target.endpoint.base(), target.path);
        let build = |client: &Client| {
            let request = client.get(&url);
            if offset > 0 { request.header(header::RANGE, format!("bytes={offset}-")) } else { request }
        };
        let response = self.send(&target, build).await?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => range_start(response.headers())
                .filter(|start| *start == offset)
                .ok_or_else(|| target.bad_answer("a part of the blob that was not asked for"))?,
            StatusCode::NOT_FOUND => {
                return Err(RegistryError::NoSuchBlob { image: target.image, host: target.endpoint.host, digest: digest.clone() });
            }
            StatusCode::FORBIDDEN => return Err(target.denied()),
            _ => return Err(target.refused(&response)),
        };
        Ok(BlobStream { offset: start, bytes: response.bytes_stream().map_err(io::Error::other).boxed() })
    }

    async fn has_blob(&self, reference: &Reference, digest: &Digest, auth: Option<&Auth>) -> Result<bool, RegistryError> {
        self.asks_for_blob(reference, digest, auth).await
    }

    async fn send_blob(&self, reference: &Reference, blob: &OutgoingBlob, auth: Option<&Auth>) -> Result<(), RegistryError> {
        self.upload(reference, blob, auth).await
    }

    async fn send_manifest(
        &self,
        reference: &Reference,
        version: &str,
        media_type: &str,
        data: Bytes,
        auth: Option<&Auth>,
    ) -> Result<(), RegistryError> {
        self.upload_manifest(reference, version, media_type, data, auth).await
    }
}

impl Target<'_> {
    fn denied(&self) -> RegistryError {
        let (image, host) = (self.image.clone(), self.endpoint.host.clone());
        match self.auth {
            Some(_) => RegistryError::Unauthorised { image, host },
            None if self.foreign_auth => RegistryError::ForeignCredentials { image, host },
            None => RegistryError::AccessDenied { image, host },
        }
    }

    fn refused(&self, response: &Response) -> RegistryError {
        let host = self.endpoint.host.clone();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            let seconds = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return RegistryError::TooManyRequests { host, retry_after: seconds.map(Duration::from_secs) };
        }
        RegistryError::Status { host, status: response.status().as_u16() }
    }

    fn bad_challenge(&self, problem: &'static str) -> RegistryError {
        RegistryError::BadChallenge { host: self.endpoint.host.clone(), problem }
    }

    fn bad_answer(&self, problem: &'static str) -> RegistryError {
        RegistryError::BadAnswer { host: self.endpoint.host.clone(), problem }
    }

    /// A header value that reqwest neither logs nor carries over to another host.
    fn secret(&self, text: String) -> Result<HeaderValue, RegistryError> {
        let mut value = HeaderValue::from_str(&text).map_err(|_| self.bad_answer("a token with characters no header may have"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn token_from(&self, body: &[u8]) -> Result<Token, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let answer: Answer = serde_json::from_slice(body).map_err(|_| self.bad_answer("a token that is no JSON"))?;
        let token = answer
            .token
            .filter(|token| !token.is_empty())
            .or(answer.access_token)
            .ok_or_else(|| self.bad_answer("a token answer without a token"))?;
        let life = answer.expires_in.map_or(DEFAULT_TOKEN_LIFE, |seconds| Duration::from_secs(seconds.min(3600)));
        // A tenth earlier, so that it does not run out on its way.
        Ok(Token { authorization: self.secret(format!("Bearer {token}"))?, good_until: Instant::now() + life * 9 / 10 })
    }
}

/// Where tokens come from. Whoever can change the answer of a registry must not learn passwords that TLS protects.
fn realm_url(realm: &str, endpoint: &Endpoint) -> Result<Url, &'static str> {
    let url = Url::parse(realm).map_err(|_| "the realm is no URL")?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if endpoint.plain => Ok(url),
        "http" => Err("the realm of an HTTPS registry is plain HTTP"),
        _ => Err("the realm is neither HTTP nor HTTPS"),
    }
}

fn builder() -> reqwest::ClientBuilder {
    // Registries send blobs off to stores elsewhere; reqwest drops our credentials when the host changes.
    let policy = redirect::Policy::custom(|attempt| {
        let was_safe = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if was_safe && attempt.url().scheme() != "https" {
            attempt.error("redirected from HTTPS to plain HTTP")
        } else if attempt.previous().len() > 5 {
            attempt.error("too many redirects")
        } else {
            attempt.follow()
        }
    });
    Client::builder().user_agent(concat!("skep/", env!("CARGO_PKG_VERSION"))).connect_timeout(CONNECT_TIMEOUT).redirect(policy)
}

/// Reads a body that must be small, and stops as soon as it is not.
async fn read_limited(mut response: Response, limit: u64, endpoint: &Endpoint) -> Result<Bytes, RegistryError> {
    let too_long = || RegistryError::TooLong { host: endpoint.host.clone(), limit };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_long());
    }
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body.freeze()),
            Ok(Some(chunk)) if body.len() as u64 + chunk.len() as u64 > limit => return Err(too_long()),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Err(error) => return Err(explain(error, endpoint).await),
        }
    }
}

/// The start of `Content-Range: bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

/// Turns a transport error into the words a person needs.
async fn explain(error: reqwest::Error, endpoint: &Endpoint) -> RegistryError {
    // Without the URL: the query of a redirect may carry a signature.
    let source = error.without_url();
    let host = endpoint.host.clone();
    if source.is_timeout() {
        return RegistryError::Timeout { host };
    }
    if !source.is_connect() {
        return RegistryError::BrokenOff { host, source };
    }
    if is_tls_failure(&source) {
        return RegistryError::Tls { host, source };
    }
    // The resolver's failure is hidden in a text; asking again is the certain way to know.
    let lookup = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(endpoint.address())).await;
    let is_known = lookup.is_ok_and(|found| found.is_ok_and(|addresses| addresses.count() > 0));
    if is_known { RegistryError::Unreachable { host, source } } else { RegistryError::NoSuchHost { host } }
}

/// rustls reports a failed handshake as `InvalidData` (tokio-rustls wraps it so).
fn is_tls_failure(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        // `source` of an I/O error leaves out the error inside it, which may be another I/O error.
        let mut io = inner.downcast_ref::<io::Error>();
        while let Some(error) = io {
            if error.kind() == io::ErrorKind::InvalidData {
                return true;
            }
            io = error.get_ref().and_then(|inside| inside.downcast_ref());
        }
        cause = inner.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_tls_registries_come_over_tls_only() {
        let config = RegistryConfig::default();
        let (hub, local) = (Endpoint::of("docker.io", &config), Endpoint::of("localhost:5000", &config));
        assert!(realm_url("https://auth.docker.io/token", &hub).is_ok());
        assert!(realm_url("http://auth.docker.io/token", &hub).is_err());
        assert!(realm_url("http://localhost:5001/token", &local).is_ok());
        assert!(realm_url("file:///etc/passwd", &local).is_err());
        assert!(realm_url("token", &local).is_err());
    }

    #[test]
    fn ranges_are_read_strictly() {
        let start = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            range_start(&headers)
        };
        assert_eq!(start("bytes 5-9/10"), Some(5));
        assert_eq!(start("bytes */10"), None);
        assert_eq!(start("lines 5-9/10"), None);
    }
}
