//! The registry client against a scripted server: tokens, limits, ranges, redirects.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use skep_images::{Auth, Digest, HttpRegistry, Reference, Registry, RegistryConfig, RegistryError};

/// One request as the server saw it.
#[derive(Debug, Clone)]
struct Seen {
    line: String,
    headers: Vec<String>,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.headers.iter().find(|line| line.to_lowercase().starts_with(&prefix)).map(|line| &line[prefix.len()..])
    }
}

struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Answers each request, one per connection, with what `answer` makes of it and of the server's own port.
    fn start(answer: impl Fn(&Seen, u16) -> Vec<u8> + Send + 'static) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let Some(request) = read_request(&stream) else { continue };
                log.lock().unwrap().push(request.clone());
                let _ = stream.write_all(&answer(&request, port));
            }
        });
        Self { port, seen }
    }

    fn reference(&self) -> Reference {
        format!("127.0.0.1:{}/team/app:v1", self.port).parse().unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let mut seen = Seen { line: lines.first()?.clone(), headers: lines[1..].to_vec(), body: String::new() };
    let length = seen.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_string(&mut seen.body).ok()?;
    Some(seen)
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;

fn token_server() -> Server {
    Server::start(|seen, port| {
        if seen.line.contains("/token") {
            return answer("200 OK", "", br#"{"token":"granted","expires_in":300}"#);
        }
        match seen.header("authorization") {
            Some("Bearer granted") => answer("200 OK", "Content-Type: application/json\r\n", MANIFEST),
            _ => {
                let challenge = format!(
                    "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"here\",scope=\"repository:team/app:pull\"\r\n"
                );
                answer("401 Unauthorized", &challenge, b"")
            }
        }
    })
}

fn client() -> HttpRegistry {
    HttpRegistry::new(RegistryConfig::default())
}

#[tokio::test]
async fn a_token_is_fetched_with_the_password_and_kept() {
    let server = token_server();
    let (registry, reference) = (client(), server.reference());
    let auth = Auth::password("me", "secret");
    for _ in 0..2 {
        let manifest = registry.manifest(&reference, "v1", Some(&auth)).await.unwrap();
        assert_eq!(manifest.digest, Digest::of(MANIFEST));
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 4, "asked, token, manifest; manifest: {seen:?}");
    assert!(seen[1].line.contains("scope=repository%3Ateam%2Fapp%3Apull") && seen[1].line.contains("service=here"));
    assert_eq!(seen[1].header("authorization"), Some("Basic bWU6c2VjcmV0"));
    // Others do not ride on that token.
    registry.manifest(&reference, "v1", None).await.unwrap();
    assert_eq!(server.seen().len(), 7);
    assert_eq!(server.seen()[5].header("authorization"), None);
}

#[tokio::test]
async fn a_log_in_asks_whether_the_password_is_right_and_for_nothing_else() {
    let server = Server::start(|seen, port| match (seen.line.contains("/token"), seen.header("authorization")) {
        (true, Some("Basic bWU6c2VjcmV0")) => answer("200 OK", "", br#"{"token":"granted"}"#),
        (true, _) => answer("401 Unauthorized", "", b""),
        (false, Some("Bearer granted")) => answer("200 OK", "", b"{}"),
        (false, _) => {
            let challenge = format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"here\"\r\n");
            answer("401 Unauthorized", &challenge, b"")
        }
    });
    let domain = format!("127.0.0.1:{}", server.port);
    client().log_in(&domain, &Auth::password("me", "secret")).await.unwrap();
    let seen = server.seen();
    assert!(seen[0].line.starts_with("GET /v2/ ") && !seen[1].line.contains("scope"), "{seen:?}");
    let refused = client().log_in(&domain, &Auth::password("me", "guessed")).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Unauthorised { .. }), "{refused}");

    let basic = Server::start(|seen, _| match seen.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => answer("200 OK", "", b"{}"),
        _ => answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"here\"\r\n", b""),
    });
    let domain = format!("127.0.0.1:{}", basic.port);
    client().log_in(&domain, &Auth::password("me", "secret")).await.unwrap();
    assert!(client().log_in(&domain, &Auth::password("me", "guessed")).await.is_err());
}

#[tokio::test]
async fn an_identity_token_is_traded_in() {
    let server = token_server();
    let json = r#"{"username":"<token>","identitytoken":"refresh me"}"#;
    let auth = Auth::parse(&base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE, json)).unwrap();
    client().manifest(&server.reference(), "v1", auth.as_ref()).await.unwrap();
    let token = server.seen()[1].clone();
    assert!(token.line.starts_with("POST /token "));
    assert!(token.body.contains("grant_type=refresh_token") && token.body.contains("refresh_token=refresh+me"));
}

#[tokio::test]
async fn listed_registries_may_have_a_token_realm_without_tls() {
    // Not a loopback name: only the list makes it plain HTTP.
    let server = token_server();
    let insecure = [format!("0.0.0.0:{}", server.port)].into();
    let registry = HttpRegistry::new(RegistryConfig { insecure });
    let reference = format!("0.0.0.0:{}/team/app:v1", server.port).parse().unwrap();
    registry.manifest(&reference, "v1", None).await.unwrap();
}

#[tokio::test]
async fn manifests_without_end_are_not_read_to_the_end() {
    let server = Server::start(|seen, _| match seen.line.contains("chunked") {
        true => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for _ in 0..200 {
                bytes.extend_from_slice(b"10000\r\n");
                bytes.extend_from_slice(&[b' '; 0x10000]);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes
        }
        false => b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{".to_vec(),
    });
    for tag in ["huge", "chunked"] {
        let refused = client().manifest(&server.reference(), tag, None).await.unwrap_err();
        assert!(matches!(refused, RegistryError::TooLong { .. }), "{tag}: {refused:?}");
    }
}

#[tokio::test]
async fn blobs_are_read_from_the_offset_or_from_the_start() {
    let server = Server::start(|seen, _| match seen.header("range") {
        Some("bytes=4-") => answer("206 Partial Content", "Content-Range: bytes 4-9/10\r\n", b"456789"),
        Some("bytes=5-") => answer("206 Partial Content", "Content-Range: bytes 0-9/10\r\n", b"0123456789"),
        _ => answer("200 OK", "", b"0123456789"),
    });
    let (registry, reference, digest) = (client(), server.reference(), Digest::of(b"0123456789"));
    let read = async |offset| {
        let mut blob = registry.blob(&reference, &digest, offset, None).await?;
        let mut data = Vec::new();
        while let Some(piece) = blob.bytes.next().await {
            data.extend_from_slice(&piece.unwrap());
        }
        Ok::<_, RegistryError>((blob.offset, data))
    };
    assert_eq!(read(0).await.unwrap(), (0, b"0123456789".to_vec()));
    assert_eq!(read(4).await.unwrap(), (4, b"456789".to_vec()));
    assert_eq!(read(7).await.unwrap().0, 0, "a registry that ignores ranges starts at the start");
    assert!(matches!(read(5).await, Err(RegistryError::BadAnswer { .. })));
}

#[tokio::test]
async fn a_redirect_to_another_host_does_not_carry_credentials() {
    let store = Server::start(|_, _| answer("200 OK", "", b"blob"));
    let store_port = store.port;
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        // `localhost` is another host than 127.0.0.1 to an HTTP client.
        Some(_) => answer("307 Temporary Redirect", &format!("Location: http://localhost:{store_port}/blob\r\n"), b""),
        None => answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b""),
    });
    let auth = Auth::password("me", "secret");
    client().blob(&server.reference(), &Digest::of(b"blob"), 0, Some(&auth)).await.unwrap();
    assert_eq!(server.seen()[1].header("authorization"), Some("Basic bWU6c2VjcmV0"));
    assert_eq!(store.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn overload_and_faults_are_passing_and_refusals_are_not() {
    let server = Server::start(|seen, _| {
        let status = seen.line.split("/manifests/").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        answer(&format!("{status} X"), "Retry-After: 7\r\n", b"")
    });
    let (registry, reference) = (client(), server.reference());
    let fetch = async |status| registry.manifest(&reference, status, None).await.unwrap_err();
    let limited = fetch("429").await;
    assert!(matches!(limited, RegistryError::TooManyRequests { retry_after: Some(wait), .. } if wait.as_secs() == 7));
    for (status, passing) in [("429", true), ("500", true), ("503", true), ("403", false), ("404", false), ("418", false)] {
        assert_eq!(fetch(status).await.is_transient(), passing, "{status}");
    }
    assert!(matches!(fetch("404").await, RegistryError::NoSuchImage { .. }));
    assert!(matches!(fetch("403").await, RegistryError::AccessDenied { .. }));
}
