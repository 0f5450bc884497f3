//! `cluster client-cert`.

use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::duration;
use crate::{output, secret, when};
use skep_ca::{Guest, NodeKey, client_lifetime};
use skep_proto::skep::{IssueClientRequest, IssuedCertificate};
use skep_types::Timestamp;
use std::fs::DirBuilder;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct ClientCert {
    /// Whose it is, for logs: letters, digits, '.', '_', '-' and '@'
    name: String,
    /// Directory for ca.pem, cert.pem and key.pem, as DOCKER_CERT_PATH wants it; made if it is not there [default: NAME]
    #[arg(long, short = 'o', value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long it is valid, from 1h to 8784h (366 days); it cannot be taken back but by another root (`cluster ca --rotate`) [default: 2160h]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires: Option<Duration>,
}

pub async fn run(flags: &ClientCert, connection: &Connection) -> Result<(), Failure> {
    let wrong = |error: skep_ca::BadGuest| Failure::failed(error.to_string());
    Guest::client(&flags.name).map_err(wrong)?;
    let lifetime = client_lifetime(flags.expires).map_err(wrong)?;
    let dir = flags.out.clone().unwrap_or_else(|| flags.name.clone().into());
    let places = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.join(name));
    if let Some(taken) = places.iter().find(|place| place.exists()) {
        return Err(Failure::failed(format!("{} is there already; name another directory with --out, or remove it", taken.display())));
    }
    // The key never leaves this machine.
    let key = NodeKey::generate().map_err(|error| Failure::failed(error.to_string()))?;
    let csr = key.request().map_err(|error| Failure::failed(error.to_string()))?.into_bytes();
    let lifetime = lifetime.try_into().map_err(|_| Failure::failed("--expires is too long"))?;
    let asked = IssueClientRequest { csr, name: flags.name.clone(), lifetime: Some(lifetime) };
    let issued = connection.certificates().issue_client(asked).await?.into_inner();
    let IssuedCertificate { chain, roots, not_after, .. } = issued;

    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(&dir);
    made.map_err(|error| Failure::failed(format!("cannot make {}: {error}", dir.display())))?;
    let [ca, cert, key_place] = &places;
    write(key_place, key.pem().expose().as_bytes())?;
    write(cert, &chain)?;
    write(ca, &roots)?;
    let until = not_after.map(|stamp| when::rfc3339(Timestamp::from_secs(stamp.seconds))).unwrap_or_default();
    let dir = dir.display();
    output::put(&format!(
        "{dir}/ca.pem, cert.pem and key.pem let {} rule this cluster and its managers by the Docker API, until {until}.\n\nOn a manager that runs \
         with --docker-tls-listen, they are used so:\n\n    DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH={dir} DOCKER_HOST=tcp://HOST:2376 docker ps\n",
        flags.name
    ))
}

/// A new file that only its owner reads.
fn write(place: &Path, data: &[u8]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", place.display()));
    let mut file = secret::create(place)?;
    file.write_all(data).and_then(|()| file.sync_all()).map_err(failed)
}
