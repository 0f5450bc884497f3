//! The writing half: OCI distribution-spec v1.1, "Pushing".

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap};
use reqwest::{Body, Client, StatusCode, Url};

use super::{ANSWER_TIMEOUT, HttpRegistry, Target};
use crate::auth::Auth;
use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::{OutgoingBlob, RegistryError};

/// The slowest line that is waited for: 16 KiB each second, and a minute for the registry to store it.
const BYTES_PER_SECOND: u64 = 16 * 1024;

impl HttpRegistry {
    pub(super) async fn asks_for_blob(&self, reference: &Reference, digest: &Digest, auth: Option<&Auth>) -> Result<bool, RegistryError> {
        let target = self.target(reference, auth);
        let url = format!("{}/v2/{}/blobs/{digest}", target.endpoint.base(), target.path);
        let response = self.send(&target, |client| client.head(&url).timeout(ANSWER_TIMEOUT)).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            StatusCode::FORBIDDEN => Err(target.denied()),
            _ => Err(target.refused(&response)),
        }
    }

    /// In one piece: every registry takes that, and a line that broke is rare enough to begin anew.
    pub(super) async fn upload(&self, reference: &Reference, blob: &OutgoingBlob, auth: Option<&Auth>) -> Result<(), RegistryError> {
        let target = self.target(reference, auth);
        let url = format!("{}/v2/{}/blobs/uploads/", target.endpoint.base(), target.path);
        let begin = |client: &Client| client.post(&url).header(header::CONTENT_LENGTH, "0").timeout(ANSWER_TIMEOUT);
        let response = self.send(&target, begin).await?;
        match response.status() {
            StatusCode::ACCEPTED => {}
            StatusCode::FORBIDDEN => return Err(target.denied()),
            _ => return Err(target.refused(&response)),
        }
        let mut place = upload_place(&target, &url, response.headers())?;
        place.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let limit = Duration::from_secs(60 + blob.length / BYTES_PER_SECOND);
        let put = |client: &Client| {
            let request = client.put(place.clone()).header(header::CONTENT_TYPE, "application/octet-stream");
            request.header(header::CONTENT_LENGTH, blob.length).body(Body::wrap_stream((blob.open)())).timeout(limit)
        };
        let response = self.send_slowly(&target, put).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::FORBIDDEN => Err(target.denied()),
            _ => Err(target.refused(&response)),
        }
    }

    pub(super) async fn upload_manifest(
        &self,
        reference: &Reference,
        version: &str,
        media_type: &str,
        data: Bytes,
        auth: Option<&Auth>,
    ) -> Result<(), RegistryError> {
        let target = self.target(reference, auth);
        let url = format!("{}/v2/{}/manifests/{version}", target.endpoint.base(), target.path);
        let put = |client: &Client| client.put(&url).header(header::CONTENT_TYPE, media_type).body(data.clone()).timeout(ANSWER_TIMEOUT);
        let response = self.send(&target, put).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::FORBIDDEN => Err(target.denied()),
            _ => Err(target.refused(&response)),
        }
    }
}

/// Where the bytes go. Credentials go along, so it is on the registry's own host and no less safe.
fn upload_place(target: &Target<'_>, asked: &str, headers: &HeaderMap) -> Result<Url, RegistryError> {
    let odd = || target.bad_answer("no place to send a blob to");
    let place = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(odd)?;
    let asked = Url::parse(asked).map_err(|_| odd())?;
    let place = asked.join(place).map_err(|_| odd())?;
    if place.origin() == asked.origin() { Ok(place) } else { Err(target.bad_answer("a place on another host to send a blob to")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::RegistryConfig;

    fn place(location: &str) -> Result<String, RegistryError> {
        let registry = HttpRegistry::new(RegistryConfig::default());
        let reference: Reference = "r.example/team/app:1".parse().unwrap();
        let target = registry.target(&reference, None);
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, location.parse().unwrap());
        upload_place(&target, "https://r.example/v2/team/app/blobs/uploads/", &headers).map(|url| url.to_string())
    }

    #[test]
    fn blobs_go_to_the_registry_and_nowhere_else() {
        assert_eq!(place("/v2/team/app/blobs/uploads/7?s=1").unwrap(), "https://r.example/v2/team/app/blobs/uploads/7?s=1");
        assert_eq!(place("https://r.example/x").unwrap(), "https://r.example/x");
        for elsewhere in ["http://r.example/x", "https://evil.example/x", "https://r.example:444/x", "//evil.example/x"] {
            assert!(matches!(place(elsewhere), Err(RegistryError::BadAnswer { .. })), "{elsewhere}");
        }
    }
}
