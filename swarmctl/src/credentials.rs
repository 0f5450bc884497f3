//! What `docker login` left behind, for `--with-registry-auth`: docker's config file and its helper programs.
//!
//! Read as docker's client does it (`docker/cli`, `cli/config/credentials`), so that one log-in serves both. Nothing here is printed: errors
//! name files, programs and registries, and of what a helper said only its complaint.

mod helper; // docker-credential-NAME
#[cfg(test)]
mod tests;

use crate::failure::Failure;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde::{Deserialize, Serialize};
use skep_types::Sensitive;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// The key under which docker keeps the credentials of its own registry (`registry.IndexServer`).
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Where credentials are looked for.
pub struct Keychain {
    /// Holds `config.json`.
    dir: PathBuf,
    /// As the variable `PATH`: where helper programs are.
    path: OsString,
}

/// Credentials of one registry: the object that `X-Registry-Auth` holds, with docker's names. Empty: none.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Login {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    password: String,
    /// Of the file only: `base64(username:password)`.
    #[serde(skip_serializing)]
    auth: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    serveraddress: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    identitytoken: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    registrytoken: String,
}

/// What is of interest in docker's `config.json`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigFile {
    auths: Option<BTreeMap<String, Login>>,
    /// Registry to helper.
    cred_helpers: Option<BTreeMap<String, String>>,
    /// The helper of all other registries.
    creds_store: Option<String>,
}

impl Keychain {
    /// That of who runs us: `$DOCKER_CONFIG`, else `~/.docker`.
    pub fn of_user() -> Result<Self, Failure> {
        let named = std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let dir = named.or_else(|| Some(std::env::home_dir()?.join(".docker")));
        let dir = dir
            .ok_or_else(|| Failure::failed("there is no home directory with docker's config.json; name its directory in DOCKER_CONFIG"))?;
        Ok(Self { dir, path: std::env::var_os("PATH").unwrap_or_default() })
    }

    /// The credentials for the registry of `image`, as `X-Registry-Auth` holds them: base64url of a JSON object, which is empty if there are none,
    /// as docker sends it.
    ///
    /// # Errors
    /// The file cannot be read or understood, or the helper program it names is missing, fails or hangs.
    pub async fn for_image(&self, image: &str) -> Result<Sensitive<String>, Failure> {
        let server = server_of(image);
        let config = self.config()?;
        let login = match config.helper(server) {
            Some(name) => helper::ask(name, &self.path, server).await?,
            None => self.kept(config, server)?,
        };
        let json = serde_json::to_vec(&login).map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Sensitive(BASE64_URL_SAFE.encode(json)))
    }

    fn file(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    fn config(&self) -> Result<ConfigFile, Failure> {
        let name = self.file();
        let text = match std::fs::read(&name) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
            Err(error) => return Err(Failure::failed(format!("cannot read {}: {error}", name.display()))),
        };
        // The parser's own words may quote the file.
        serde_json::from_slice(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Failure::failed(format!("{} is not docker's config file: line {line}, column {column} is not as expected", name.display()))
        })
    }

    /// Credentials that the file itself holds. The password is hidden in it by base64 only.
    fn kept(&self, config: ConfigFile, server: &str) -> Result<Login, Failure> {
        let Some((key, mut login)) = config.entry(server) else { return Ok(Login::default()) };
        if !login.auth.is_empty() {
            let pair = BASE64_STANDARD.decode(&login.auth).ok().and_then(|pair| String::from_utf8(pair).ok());
            let pair = pair.as_deref().and_then(|pair| pair.split_once(':')).filter(|(username, _)| !username.is_empty());
            let (username, password) = pair.ok_or_else(|| {
                let file = self.file();
                Failure::failed(format!("the credentials of {key} in {} cannot be read; repeat `docker login`", file.display()))
            })?;
            login.username = username.to_owned();
            login.password = password.trim_matches('\0').to_owned();
        }
        login.serveraddress = key;
        Ok(login)
    }
}

impl ConfigFile {
    /// The program that keeps the credentials of `server`, if the file does not.
    fn helper(&self, server: &str) -> Option<&str> {
        let own = self.cred_helpers.as_ref().and_then(|helpers| helpers.get(server));
        own.or(self.creds_store.as_ref()).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The entry of `server`; old files have addresses (`https://registry.example/v1/`) for keys.
    fn entry(self, server: &str) -> Option<(String, Login)> {
        let mut auths = self.auths?;
        let key = auths.keys().find(|key| *key == server).or_else(|| auths.keys().find(|key| host(key) == server))?.clone();
        auths.remove_entry(&key)
    }
}

/// Host and port of an address.
fn host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// Under which name docker keeps the credentials for an image's registry. What comes before the first slash is a registry if it looks like a
/// host, as in `distribution/reference` `splitDockerDomain`.
fn server_of(image: &str) -> &str {
    match image.split_once('/') {
        Some(("docker.io" | "index.docker.io", _)) => DOCKER_HUB,
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase) => first,
        _ => DOCKER_HUB,
    }
}
