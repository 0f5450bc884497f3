//! Requests that come over a network: whose name they call this host by, and who lets them in.
//!
//! On a Unix socket the file's permissions say who may ask. On TCP a browser could be made to ask for somebody else, by a name that
//! was pointed at this host a moment ago, or by a page that knows the right name and has a certificate to hand. So the name is looked
//! at, and pages are refused.

use crate::ApiError;
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, Uri, header};
use std::net::IpAddr;

/// Who lets requests of one connection in.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Whether the client may ask now; asked for each request.
    ///
    /// # Errors
    /// In words for the client.
    async fn admit(&self) -> Result<(), ApiError>;
    /// The host names and IP addresses that this host answers to.
    fn names(&self) -> Vec<String>;
    /// Returns when the connection has to end whatever it does.
    async fn cut(&self);
}

/// Browsers send one of these, and nobody else.
const OF_PAGES: [HeaderName; 2] = [header::ORIGIN, HeaderName::from_static("sec-fetch-site")];

/// Whether a request calls this host by one of its names, and is not a web page's.
pub(crate) fn check(uri: &Uri, headers: &HeaderMap, names: &[String]) -> Result<(), ApiError> {
    if let Some(name) = OF_PAGES.iter().find(|name| headers.contains_key(*name)) {
        return Err(ApiError::forbidden(format!("the request comes from a web page ({name}); the Docker API does not answer pages")));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(ApiError::invalid("the request must have one Host header"));
    };
    let host = host.to_str().map_err(|_| ApiError::invalid("the Host header is not text"))?;
    for asked in std::iter::once(host).chain(uri.authority().map(http::uri::Authority::as_str)) {
        if !is_one_of(asked, names) {
            let known = names.join(", ");
            return Err(ApiError::forbidden(format!(
                "this host is not called {asked:?}; it answers to {known}; start skepd with --docker-tls-name for other names"
            )));
        }
    }
    Ok(())
}

/// Whether `host`, `host:port` or `[address]:port` is of one of the names. Case and a dot at the end mean nothing.
fn is_one_of(asked: &str, names: &[String]) -> bool {
    let host = match asked.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => is_port(port).then_some(host),
        None => match asked.split_once(':') {
            Some((host, port)) => is_port(&format!(":{port}")).then_some(host),
            None => Some(asked),
        },
    };
    let Some(host) = host else { return false };
    let address = host.parse::<IpAddr>().ok();
    let host = host.strip_suffix('.').unwrap_or(host);
    names.iter().any(|name| match address {
        Some(address) => name.parse() == Ok(address),
        None => name.eq_ignore_ascii_case(host),
    })
}

fn is_port(text: &str) -> bool {
    text.is_empty()
        || text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|c| c.is_ascii_digit()) && digits.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, StatusCode};

    fn names() -> Vec<String> {
        ["box.example", "192.0.2.7", "::1"].map(str::to_owned).to_vec()
    }

    fn asked(uri: &str, headers: &[(HeaderName, &str)]) -> Result<(), ApiError> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| _ = map.append(name, value));
        check(&uri.parse().unwrap(), &map, &names())
    }

    #[test]
    fn a_host_answers_to_its_names_only() {
        for host in ["box.example", "BOX.example:2376", "box.example.", "192.0.2.7:2376", "[::1]:2376", "[0:0::1]"] {
            assert_eq!(asked("/info", &[(header::HOST, host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:2376",
            "box.example@evil",
            "",
            "192.0.2.8",
            "[::2]:1",
            "box.example:99999",
            "box.example:x",
            "[::1]x",
        ] {
            assert_eq!(asked("/info", &[(header::HOST, host)]).unwrap_err().status(), StatusCode::FORBIDDEN, "{host}");
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        assert_eq!(asked("/info", &[]).unwrap_err().status(), StatusCode::BAD_REQUEST);
        let twice = [(header::HOST, "box.example"), (header::HOST, "box.example")];
        assert_eq!(asked("/info", &twice).unwrap_err().status(), StatusCode::BAD_REQUEST);
        let good = (header::HOST, "box.example");
        assert!(asked("http://evil.example/info", std::slice::from_ref(&good)).is_err());
        assert_eq!(asked("http://box.example/info", &[good]), Ok(()));
    }

    #[test]
    fn pages_are_refused_whatever_they_call_this_host() {
        for (name, value) in [(header::ORIGIN, "https://box.example"), (OF_PAGES[1].clone(), "same-origin")] {
            let refused = asked("/info", &[(header::HOST, "box.example"), (name, value)]).unwrap_err();
            assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        }
    }
}
