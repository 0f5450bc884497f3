use super::{DOCKER_HUB, Keychain, server_of};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A directory with docker's config file; helper programs may be put beside it.
fn keychain(config: &Value) -> (TempDir, Keychain) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let keychain = Keychain { dir: dir.path().to_owned(), path: dir.path().into() };
    (dir, keychain)
}

/// Written by a process of its own: what this one has open for writing, another test's child may hold, and then it cannot be run.
fn helper(dir: &Path, name: &str, script: &str) {
    let write = r#"printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod 700 "$1""#;
    let file = dir.join(format!("docker-credential-{name}"));
    let done = Command::new("sh").args(["-c", write, "sh"]).arg(file).arg(script).status().unwrap();
    assert!(done.success());
}

async fn found(keychain: &Keychain, image: &str) -> Value {
    let text = keychain.for_image(image).await.unwrap().0;
    serde_json::from_slice(&BASE64_URL_SAFE.decode(text).unwrap()).unwrap()
}

async fn refused(keychain: &Keychain, image: &str) -> String {
    keychain.for_image(image).await.unwrap_err().to_string()
}

#[test]
fn an_image_tells_its_registry() {
    for image in ["nginx", "nginx:1.27", "team/app", "docker.io/team/app:1", "index.docker.io/nginx", "nginx@sha256:00"] {
        assert_eq!(server_of(image), DOCKER_HUB, "{image}");
    }
    for (image, server) in [
        ("reg.example/app:1", "reg.example"),
        ("localhost/app", "localhost"),
        ("reg:5000/a/b@sha256:00", "reg:5000"),
        ("[::1]:5000/a", "[::1]:5000"),
    ] {
        assert_eq!(server_of(image), server);
    }
}

#[tokio::test]
async fn credentials_in_the_file_go_to_their_registry_only() {
    let (_dir, keychain) = keychain(&json!({"auths": {
        DOCKER_HUB: {"auth": "bWU6cDpxPw=="},
        "reg.example:5000": {"auth": "eW91Og==", "identitytoken": "t0ken"},
        "https://old.example/v1/": {"username": "me", "password": "old"},
    }}));
    assert_eq!(found(&keychain, "team/app").await, json!({"username": "me", "password": "p:q?", "serveraddress": DOCKER_HUB}));
    let token = json!({"username": "you", "identitytoken": "t0ken", "serveraddress": "reg.example:5000"});
    assert_eq!(found(&keychain, "reg.example:5000/app").await, token);
    let old = json!({"username": "me", "password": "old", "serveraddress": "https://old.example/v1/"});
    assert_eq!(found(&keychain, "old.example/app").await, old);
    assert_eq!(found(&keychain, "reg.example/app").await, json!({}));
}

#[tokio::test]
async fn none_are_an_empty_object_as_docker_sends_it() {
    let dir = tempfile::tempdir().unwrap();
    let keychain = Keychain { dir: dir.path().join("none"), path: OsString::new() };
    assert_eq!(keychain.for_image("nginx").await.unwrap().0, "e30=");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named_and_not_shown() {
    let (dir, keychain) = keychain(&json!({"auths": {"reg.example": "hunter2"}}));
    let name = dir.path().join("config.json");
    let text = refused(&keychain, "reg.example/app").await;
    assert!(text.contains(name.to_str().unwrap()) && !text.contains("hunter2"), "{text}");
    std::fs::write(&name, json!({"auths": {"reg.example": {"auth": "aHVudGVyMg=="}}}).to_string()).unwrap();
    let text = refused(&keychain, "reg.example/app").await;
    assert!(text.contains("reg.example") && text.contains("docker login") && !text.contains("aHVu"), "{text}");
    assert_eq!(found(&keychain, "other.example/app").await, json!({}));
}

#[tokio::test]
async fn a_helper_is_asked_for_the_registry() {
    let (dir, keychain) = keychain(&json!({"auths": {"a.example": {}}, "credsStore": "all", "credHelpers": {"b.example": "one"}}));
    helper(
        dir.path(),
        "all",
        r#"[ "$1" = get ] && read -r server; echo "{\"ServerURL\":\"$server\",\"Username\":\"u-$server\",\"Secret\":\"s\"}""#,
    );
    helper(dir.path(), "one", r#"cat > /dev/null; echo '{"Username":"<token>","Secret":"t"}'"#);
    let login = json!({"username": "u-a.example", "password": "s", "serveraddress": "a.example"});
    assert_eq!(found(&keychain, "a.example/app").await, login);
    assert_eq!(found(&keychain, "b.example/app").await, json!({"identitytoken": "t", "serveraddress": "b.example"}));
}

#[tokio::test]
async fn a_helper_that_knows_nothing_means_none() {
    let (dir, keychain) = keychain(&json!({"credsStore": "all"}));
    helper(dir.path(), "all", "echo credentials not found in native keychain; exit 1");
    assert_eq!(found(&keychain, "a.example/app").await, json!({}));
}

#[tokio::test]
async fn a_helper_that_fails_is_named_with_what_it_said() {
    let (dir, keychain) = keychain(&json!({"credsStore": "all"}));
    let text = refused(&keychain, "a.example/app").await;
    assert!(text.contains("docker-credential-all") && text.contains("not in PATH"), "{text}");
    helper(dir.path(), "all", "echo the store is locked; exit 3");
    let text = refused(&keychain, "a.example/app").await;
    assert!(
        ["a.example", "docker-credential-all", "exit status: 3", "the store is locked"].iter().all(|part| text.contains(part)),
        "{text}"
    );
    for script in [r#"echo '{"Secret":"hunter2"'"#, r#"echo '{"Secret":"hunter2"}'; exit 1"#, "exec kill -9 $$"] {
        helper(dir.path(), "all", script);
        let text = refused(&keychain, "a.example/app").await;
        assert!(text.contains("docker-credential-all") && !text.contains("hunter2"), "{text}");
    }
    helper(dir.path(), "all", "head -c 99999 /dev/zero");
    let text = refused(&keychain, "a.example/app").await;
    assert!(text.contains("more than 65536 bytes"), "{text}");
}
