//! The local socket against a foreign TLS stack, and what a genuine `swarmctl` sends.

use crate::*;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::process::Command;

const NAME: &str = "%2Fvar%2Frun%2Fswarmd.sock";

fn security() -> SecurityConfig {
    let now = std::time::SystemTime::now();
    let root = RootCa::generate(now).unwrap();
    let (node, cluster) = (skep_types::NodeId::for_test(1), skep_types::ClusterId::for_test(2));
    SecurityConfig::new(Identity::of_first_manager(&root, node, cluster, DEFAULT_LIFETIME, now).unwrap()).unwrap()
}

fn no_openssl() -> bool {
    let missing = std::process::Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err();
    assert!(!missing || std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "openssl is not installed");
    if missing {
        eprintln!("SKIPPED: openssl is not installed");
    }
    missing
}

/// `openssl s_client` with this server name: what it read and its complaints. It ends when the server closes.
async fn openssl(target: &[&str], name: &str) -> (Vec<u8>, String) {
    // Our own word: `-alpn h2` unless the test says otherwise.
    let alpn: &[&str] = if target.iter().any(|word| word.ends_with("-alpn")) { &[] } else { &["-alpn", "h2"] };
    let mut child = Command::new("openssl")
        .args(["s_client", "-quiet", "-servername", name])
        .args(alpn)
        .args(target.iter().filter(|word| **word != "-no-alpn"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut output, mut complaints) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut read, mut said) = (Vec::new(), String::new());
    let wait = async {
        let _ = tokio::join!(output.read_to_end(&mut read), complaints.read_to_string(&mut said));
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), wait).await.expect("openssl ends when the server closes");
    (read, said)
}

#[tokio::test]
async fn openssl_with_a_path_for_a_name_is_served_on_the_local_socket() {
    if no_openssl() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("local.sock");
    let mut incoming = serve_local(UnixListener::bind(&path).unwrap(), &security());
    let target = ["-unix", path.to_str().unwrap()];
    for name in [NAME, "swarmd.sock"] {
        let server = async {
            let mut connection = incoming.next().await.unwrap();
            connection.write_all(b"hello").await.unwrap();
            connection.shutdown().await.unwrap();
        };
        let ((read, said), ()) = tokio::join!(openssl(&target, name), server);
        assert_eq!(read, b"hello", "{name}: {said}");
    }
}

/// Shows the trap: the day rustls takes such names, the module `sni` can go.
#[tokio::test]
async fn rustls_by_itself_refuses_a_path_for_a_name() {
    if no_openssl() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let _incoming = serve_remote(listener, &security());
    let (_, said) = openssl(&["-connect", &address], NAME).await;
    assert!(said.contains("illegal parameter"), "{said}");
}

/// What peers of other ages do on the TCP port: TLS 1.2, no ALPN; and what is refused.
#[tokio::test]
async fn older_peers_are_served_on_the_tcp_port_and_too_old_ones_are_not() {
    if no_openssl() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut incoming = serve_remote(listener, &security());
    let base = ["-connect", &address];
    let served: [(&[&str], _); 3] = [
        (&["-tls1_2"], rustls::ProtocolVersion::TLSv1_2),
        (&["-tls1_3"], rustls::ProtocolVersion::TLSv1_3),
        (&["-tls1_3", "-no-alpn"], rustls::ProtocolVersion::TLSv1_3),
    ];
    for (more, version) in served {
        let arguments = [&base[..], more].concat();
        let server = async {
            let mut connection = incoming.next().await.unwrap();
            connection.write_all(b"hello").await.unwrap();
            connection.shutdown().await.unwrap();
            connection.protocol()
        };
        let ((read, said), seen) = tokio::join!(openssl(&arguments, "swarm-ca"), server);
        assert_eq!((read.as_slice(), seen), (&b"hello"[..], Some(version)), "{more:?}: {said}");
    }
    let too_old = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    let (_, said) = openssl(&[&base[..], &too_old].concat(), "swarm-ca").await;
    assert!(said.contains("alert handshake failure") || said.contains("alert protocol version"), "{said}");
    let (_, said) = openssl(&[&base[..], &["-alpn", "http/1.1"]].concat(), "swarm-ca").await;
    assert!(said.contains("no application protocol"), "{said}");
}

/// What a stranger sees who asks for a manager by its name: the end of the connection before a byte of HTTP.
#[tokio::test]
async fn a_stranger_who_asks_for_a_manager_gets_an_alert() {
    if no_openssl() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let _incoming = serve_remote(listener, &security());
    for (version, alert) in [("-tls1_3", "alert certificate required"), ("-tls1_2", "alert")] {
        let (read, said) = openssl(&["-connect", &address, version], "swarm-manager").await;
        assert!(read.is_empty() && said.contains(alert), "{version}: {said}");
    }
}

/// An operator's own root, made by OpenSSL; and what OpenSSL thinks of the certificates we sign with it.
#[test]
fn roots_of_openssl_sign_certificates_that_openssl_verifies() {
    if no_openssl() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| {
        let out = std::process::Command::new("openssl").args(arguments).output().unwrap();
        assert!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    // After the certificates are made, which takes seconds on a busy machine: they are valid from that moment.
    let now = std::time::SystemTime::now;
    let kinds: [&[&str]; 3] = [
        &["genrsa", "-traditional", "-out"],
        &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"],
        &["ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out"],
    ];
    let mut roots = Vec::new();
    for (number, kind) in kinds.into_iter().enumerate() {
        let (key, certificate) = (at(&format!("{number}.key")), at(&format!("{number}.crt")));
        run(&[kind, &[&key]].concat());
        run(&[
            "req",
            "-x509",
            "-new",
            "-key",
            &key,
            "-out",
            &certificate,
            "-days",
            "4000",
            "-sha384",
            "-subj",
            "/O=Bees/CN=own root",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]);
        let read = |path: &str| std::fs::read_to_string(path).unwrap();
        let root = RootCa::load(&read(&certificate), &Secret::new(read(&key))).unwrap();
        let (node, cluster) = (skep_types::NodeId::for_test(1), skep_types::ClusterId::for_test(2));
        let manager = Identity::of_first_manager(&root, node, cluster, DEFAULT_LIFETIME, now()).unwrap();
        let leaf = at("leaf.crt");
        std::fs::write(&leaf, manager.chain_pem()).unwrap();
        run(&["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "swarm-manager", "-CAfile", &certificate, &leaf]);
        run(&["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", &certificate, &leaf]);
        roots.push((root, certificate));
    }
    // A rotation from each kind to each.
    for (old, old_file) in &roots {
        for (new, new_file) in roots.iter().filter(|(_, file)| file != old_file) {
            let cross = old.cross_sign(new.bundle()).unwrap();
            let file = at("cross.crt");
            std::fs::write(&file, &cross).unwrap();
            run(&["verify", "-CAfile", old_file, &file]);
            let rotating = RootCa::during_rotation(old.bundle(), new.bundle().pem(), &new.key_pem(), &cross).unwrap();
            let (node, cluster) = (skep_types::NodeId::for_test(1), skep_types::ClusterId::for_test(2));
            let leaf = at("leaf.crt");
            let manager = Identity::of_first_manager(&rotating, node, cluster, DEFAULT_LIFETIME, now()).unwrap();
            std::fs::write(&leaf, manager.chain_pem()).unwrap();
            run(&["verify", "-x509_strict", "-purpose", "sslserver", "-untrusted", &leaf, "-CAfile", old_file, &leaf]);
            run(&["verify", "-x509_strict", "-purpose", "sslserver", "-untrusted", &leaf, "-CAfile", new_file, &leaf]);
        }
    }
}

/// The first bytes a genuine `swarmctl` sends above TLS: preface, settings, one call; `:authority` in Huffman code.
fn call() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]); // SETTINGS
    let mut block = vec![0x83, 0x87, 0x84]; // POST, https, /
    block.push(0x41);
    // %2Fvar%2Frun%2Fswarmd.sock by RFC 7541 appendix B, padded with ones
    let codes: [(u32, u32); 26] = [
        (6, 0x15),
        (5, 2),
        (7, 0x61),
        (7, 0x77),
        (5, 3),
        (6, 0x2c),
        (6, 0x15),
        (5, 2),
        (7, 0x61),
        (6, 0x2c),
        (6, 0x2d),
        (6, 0x2a),
        (6, 0x15),
        (5, 2),
        (7, 0x61),
        (5, 8),
        (7, 0x78),
        (5, 3),
        (6, 0x2c),
        (6, 0x29),
        (6, 0x24),
        (6, 0x17),
        (5, 8),
        (5, 7),
        (5, 4),
        (7, 0x75),
    ];
    let mut bits: Vec<u8> = codes.iter().flat_map(|(n, code)| (0..*n).rev().map(move |bit| (code >> bit & 1) as u8)).collect();
    bits.resize(bits.len().next_multiple_of(8), 1);
    block.push(0x80 | (bits.len() / 8) as u8);
    block.extend(bits.chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | bit)));
    bytes.extend_from_slice(&[0, 0, block.len() as u8, 1, 0x5, 0, 0, 0, 1]); // HEADERS, END_STREAM | END_HEADERS
    bytes.extend_from_slice(&block);
    // The second call refers to the entry that HPACK remembered.
    bytes.extend_from_slice(&[0, 0, 4, 1, 0x5, 0, 0, 0, 3, 0x83, 0x87, 0x84, 0x80 | 62]);
    bytes
}

async fn authorities_seen_by_h2(acceptor: &Acceptor, connector: &Connector) -> Result<Vec<String>, h2::Error> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client = async {
        let (mut stream, _) = connector.connect(near).await.unwrap();
        stream.write_all(&call()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let (server, client) = tokio::join!(acceptor.accept(far), client);
    let mut server = h2::server::handshake(server.unwrap()).await?;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (request, mut answer) = server.accept().await.expect("the client is still there")?;
        seen.push(request.uri().authority().unwrap().to_string());
        let _ = answer.send_response(http::Response::new(()), true);
    }
    drop(client);
    Ok(seen)
}

#[tokio::test]
async fn h2_takes_the_request_of_a_genuine_swarmctl_on_the_local_socket() {
    let (security, connector) = (security(), Connector::local().unwrap());
    let seen = authorities_seen_by_h2(&Acceptor::new(&security, Door::Local), &connector).await.unwrap();
    assert_eq!(seen, ["-2Fvar-2Frun-2Fswarmd.sock"; 2]);
}

#[tokio::test]
async fn the_socket_of_a_dead_daemon_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("run/local.sock");
    drop(bind_local(path).unwrap());
    assert!(path.exists(), "a dead daemon leaves its socket");
    let listener = bind_local(path).unwrap();
    let refused = bind_local(path).unwrap_err().to_string();
    assert!(refused.contains("another daemon"), "{refused}");
    drop(listener);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, "precious").unwrap();
    assert!(bind_local(path).is_err());
    assert_eq!(std::fs::read(path).unwrap(), b"precious");
}
