//! `cluster ca`.

use super::{edit, rotation};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::{ExternalCas, duration, external_ca, set_external_cas};
use crate::output;
use skep_proto::v1;
use skep_types::{ClusterSpec, Sensitive};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Ca {
    /// Replace the root certificate; every node gets a new certificate, and both join tokens change at the end
    #[arg(long)]
    rotate: bool,
    /// The new root certificate (PEM; default: managers make one)
    #[arg(long, visible_alias = "ca-cert", value_name = "FILE", requires = "rotate")]
    cert: Option<PathBuf>,
    /// Its private key (PEM); without it an external CA must sign
    #[arg(long, visible_alias = "ca-key", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// How long new node certificates are valid
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "rotate")]
    cert_expiry: Option<Duration>,
    /// CA outside that signs instead: protocol=cfssl,url=https://…[,cacert=FILE]; "none" removes those there are. Without cacert it is
    /// the present root's; the one that has the present root's key also signs the new root, by its profile CA
    #[arg(long, value_name = "CA", value_parser = external_ca, requires = "rotate")]
    external_ca: Vec<ExternalCas>,
    /// Do not wait until every node has its new certificate
    #[arg(long, short = 'd', requires = "rotate")]
    detach: bool,
    /// No progress
    #[arg(long, short = 'q')]
    quiet: bool,
}

pub async fn run(flags: &Ca, connection: &Connection) -> Result<(), Failure> {
    if flags.rotate {
        let given = Given::read(flags)?;
        edit::change(connection, v1::KeyRotation::default(), |spec| {
            given.apply(flags, spec);
            Ok(())
        })
        .await?;
        if flags.detach {
            return Ok(());
        }
        if !rotation::wait(connection, flags.quiet).await? {
            return Ok(());
        }
    }
    let root = edit::cluster(connection).await?.root_ca.unwrap_or_default().ca_cert;
    output::put(&format!("{}\n", String::from_utf8_lossy(&root).trim_end()))
}

/// What the files hold.
struct Given {
    cert: Vec<u8>,
    key: Sensitive<Vec<u8>>,
}

impl Given {
    fn read(flags: &Ca) -> Result<Self, Failure> {
        let read = |file: Option<&Path>| match file {
            None => Ok(Vec::new()),
            Some(path) => std::fs::read(path).map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display()))),
        };
        Ok(Self { cert: read(flags.cert.as_deref())?, key: Sensitive(read(flags.key.as_deref())?) })
    }

    /// A certificate that is given starts the rotation by being another one; without one the counter does.
    fn apply(&self, flags: &Ca, spec: &mut ClusterSpec) {
        let config = &mut spec.ca_config;
        config.signing_ca_cert.clone_from(&self.cert);
        config.signing_ca_key.clone_from(&self.key);
        if self.cert.is_empty() {
            config.force_rotate += 1;
        }
        if flags.cert_expiry.is_some() {
            config.node_cert_expiry = flags.cert_expiry;
        }
        set_external_cas(spec, &flags.external_ca);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        ca: Ca,
    }

    fn parse(flags: &[&str]) -> Result<Ca, clap::Error> {
        Line::try_parse_from(std::iter::once(&"ca").chain(flags)).map(|line| line.ca)
    }

    #[test]
    fn what_only_a_rotation_uses_needs_one() {
        for flags in [&["--cert", "f"][..], &["--key", "f"], &["--detach"], &["--cert-expiry", "2h"], &["--rotate", "--key", "f"]] {
            assert!(parse(flags).is_err(), "{flags:?}");
        }
        assert!(parse(&["--rotate", "--ca-cert", "c", "--ca-key", "k", "--detach"]).is_ok());
    }

    #[test]
    fn a_given_root_rotates_by_itself_and_a_made_one_by_the_counter() {
        let mut spec = ClusterSpec::default();
        let flags = parse(&["--rotate", "--cert-expiry", "2h"]).unwrap();
        Given::read(&flags).unwrap().apply(&flags, &mut spec);
        assert_eq!((spec.ca_config.force_rotate, spec.ca_config.node_cert_expiry), (1, Some(Duration::from_secs(7200))));
        Given { cert: b"c".to_vec(), key: Sensitive(b"k".to_vec()) }.apply(&flags, &mut spec);
        assert_eq!(spec.ca_config.force_rotate, 1);
        assert_eq!((spec.ca_config.signing_ca_cert.as_slice(), spec.ca_config.signing_ca_key.0.as_slice()), (&b"c"[..], &b"k"[..]));
    }
}
