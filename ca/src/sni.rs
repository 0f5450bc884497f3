//! Server names that are no names, on the local socket.
//!
//! A genuine `swarmctl` (grpc-go with a custom dialer) takes the socket's path, percent-encoded, for the server name:
//! `%2Fvar%2Frun%2Fswarmd.sock`. rustls 0.23 ends such a handshake with the alert illegal_parameter before any resolver or
//! verifier of ours is asked (`rustls/src/server/hs.rs`, `ServerNamePayload::Invalid`); also its `Acceptor` does.
//!
//! The name is of no use to us, so the listener hides it: in the ClientHello it renames the extension from `server_name` (0) to a
//! type nobody uses, which rustls skips as any server must skip what it does not know. One thing then goes wrong: both sides hash
//! all handshake messages, and rustls would hash the renamed ClientHello. rustls lets a provider bring its own hash functions, so
//! the local socket's provider has ring's SHA-2 with the extension renamed back in what is hashed. The handshake is the ordinary
//! one in every other respect, and no key or verification depends on the name: the local socket has one certificate, which nobody
//! verifies.
//!
//! Limits: TLS 1.3 only; a ClientHello in more than one record, or a second one after HelloRetryRequest, is left as it is (Go's
//! client sends a share for X25519 at once, so none is requested).

use rustls::SupportedCipherSuite;
use rustls::Tls13CipherSuite;
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, ring};
use rustls::pki_types::ServerName;
use std::sync::{Arc, LazyLock};

/// RFC 6066 §3.
const SERVER_NAME: [u8; 2] = [0, 0];
/// Unassigned, and not of the GREASE pattern that clients send at random (RFC 8701).
const HIDDEN_NAME: [u8; 2] = [0xfe, 0x5b];

const RECORD_HEADER: usize = 5;

/// ring's TLS 1.3 suites over hashes that see the true ClientHello.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = ring::default_provider();
        provider.cipher_suites = provider.cipher_suites.into_iter().filter_map(with_true_hash).collect();
        Arc::new(provider)
    });
    PROVIDER.clone()
}

/// rustls wants suites that live for ever; these few are made once per process.
fn with_true_hash(suite: SupportedCipherSuite) -> Option<SupportedCipherSuite> {
    let SupportedCipherSuite::Tls13(suite) = suite else { return None };
    let hash: &'static dyn Hash = Box::leak(Box::new(TrueHash(suite.common.hash_provider)));
    let common = CipherSuiteCommon { hash_provider: hash, ..CipherSuiteCommon { ..suite.common } };
    Some(SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite { common, ..*suite }))))
}

/// Hides the server name of a TLS record that holds a whole ClientHello, if it is not a name that rustls accepts.
pub(crate) fn hide_bad_name(record: &mut [u8]) {
    if record.len() < RECORD_HEADER || record[0] != 22 {
        return;
    }
    let hello = &mut record[RECORD_HEADER..];
    // A client that sends our marker itself would be hashed wrongly: leave it alone.
    if find_extension(hello, HIDDEN_NAME).is_some() {
        return;
    }
    let Some(at) = find_extension(hello, SERVER_NAME) else { return };
    if !is_acceptable(&hello[at..]) {
        hello[at..at + 2].copy_from_slice(&HIDDEN_NAME);
    }
}

/// Whether the first host name in a server_name extension is one for rustls. What cannot be parsed is for rustls to refuse.
fn is_acceptable(extension: &[u8]) -> bool {
    // type 2, length 2, list length 2, name type 1 (0: host name), name length 2, name
    match extension.get(6..9) {
        Some([0, high, low]) => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            extension.get(9..9 + length).is_none_or(|name| ServerName::try_from(name).is_ok())
        }
        _ => true,
    }
}

/// Where in a ClientHello message (RFC 8446 §4.1.2), possibly cut short, an extension begins.
fn find_extension(hello: &[u8], wanted: [u8; 2]) -> Option<usize> {
    if hello.first() != Some(&1) {
        return None;
    }
    let length_of = |at: usize, octets: usize| -> Option<usize> {
        Some(hello.get(at..at + octets)?.iter().fold(0usize, |sum, octet| (sum << 8) | usize::from(*octet)))
    };
    let mut at = 1 + 3 + 2 + 32; // type, length, version, random
    at += 1 + length_of(at, 1)?; // session id
    at += 2 + length_of(at, 2)?; // cipher suites
    at += 1 + length_of(at, 1)?; // compression
    at += 2; // length of all extensions
    while let Some(found) = hello.get(at..at + 2) {
        if found == wanted {
            return Some(at);
        }
        at += 4 + length_of(at + 2, 2)?;
    }
    None
}

/// A hash that sees hidden names where they were.
struct TrueHash(&'static dyn Hash);

impl Hash for TrueHash {
    fn start(&self) -> Box<dyn Context> {
        Box::new(TrueContext(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        with_name_shown(data, |data| self.0.hash(data))
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }
}

struct TrueContext(Box<dyn Context>);

impl Context for TrueContext {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        with_name_shown(data, |data| self.0.update(data));
    }
}

/// Messages are hashed one by one and whole, so that what begins as a ClientHello is one.
fn with_name_shown<T>(data: &[u8], then: impl FnOnce(&[u8]) -> T) -> T {
    match find_extension(data, HIDDEN_NAME) {
        None => then(data),
        Some(at) => {
            let mut shown = data.to_vec();
            shown[at..at + 2].copy_from_slice(&SERVER_NAME);
            then(&shown)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A record with a ClientHello that holds these extensions.
    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut list = Vec::new();
        for (kind, content) in extensions {
            list.extend_from_slice(&kind.to_be_bytes());
            list.extend_from_slice(&(content.len() as u16).to_be_bytes());
            list.extend_from_slice(content);
        }
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[4, 1, 2, 3, 4]); // session id
        body.extend_from_slice(&[0, 2, 0x13, 1]); // suites
        body.extend_from_slice(&[1, 0]); // compression
        body.extend_from_slice(&(list.len() as u16).to_be_bytes());
        body.extend_from_slice(&list);
        let mut record = vec![22, 3, 1];
        record.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
        record.extend_from_slice(&[1, 0, (body.len() >> 8) as u8, body.len() as u8]);
        record.extend_from_slice(&body);
        record
    }

    fn server_name(name: &str) -> Vec<u8> {
        let mut content = (name.len() as u16 + 3).to_be_bytes().to_vec();
        content.push(0);
        content.extend_from_slice(&(name.len() as u16).to_be_bytes());
        content.extend_from_slice(name.as_bytes());
        content
    }

    #[test]
    fn a_path_is_hidden_and_hashed_as_it_was() {
        let name = server_name("%2Fvar%2Frun%2Fswarmd.sock");
        let original = hello(&[(10, &[0, 2, 0, 29]), (0, &name), (16, b"xy")]);
        let mut changed = original.clone();
        hide_bad_name(&mut changed);
        assert_eq!(original.iter().zip(&changed).filter(|(a, b)| a != b).count(), 2);
        with_name_shown(&changed[RECORD_HEADER..], |shown| assert_eq!(shown, &original[RECORD_HEADER..]));
        let sha256 = provider().cipher_suites[1].tls13().unwrap().common.hash_provider;
        assert_eq!(sha256.hash(&changed[5..]).as_ref(), sha256.hash(&original[5..]).as_ref());
    }

    #[test]
    fn a_proper_name_and_other_records_are_left_alone() {
        let bad = server_name("%2Fx");
        for record in [
            hello(&[(0, &server_name("swarmd.sock"))]),
            hello(&[(0, &server_name("localhost")), (16, b"xy")]),
            hello(&[(16, b"xy")]),
            hello(&[(0xfe5b, b"mine"), (0, &bad)]),
            b"PRI * HTTP/2.0\r\n".to_vec(),
            Vec::new(),
        ] {
            let mut seen = record.clone();
            hide_bad_name(&mut seen);
            assert_eq!(seen, record);
        }
    }

    proptest! {
        #[test]
        fn junk_and_cut_hellos_do_not_panic(cut in 0usize..120, junk in proptest::collection::vec(any::<u8>(), 0..200)) {
            let whole = hello(&[(10, &[0, 2, 0, 29]), (0, &server_name("%2Fvar%2Frun"))]);
            let mut record = whole[..cut.min(whole.len())].to_vec();
            hide_bad_name(&mut record);
            let mut record = [&whole[..cut.min(whole.len())], &junk].concat();
            hide_bad_name(&mut record);
            let mut record = [&[22, 3, 1, 0, 0, 1][..], &junk].concat();
            hide_bad_name(&mut record);
        }
    }
}
