use super::*;
use skep_types::ExternalCa;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn root() -> RootCa {
    RootCa::generate(now()).unwrap()
}

fn cluster(root: &RootCa) -> Cluster {
    let mut cluster = Cluster::new(ClusterId::for_test(1));
    let token = |byte| Sensitive(JoinToken::new(root.bundle(), [byte; 16]).text().expose().to_owned());
    cluster.root_ca = ClusterRootCa {
        ca_key: sensitive(&root.key_pem()),
        ca_cert: root.bundle().pem().as_bytes().to_vec(),
        ca_cert_hash: root.bundle().digest_text(),
        join_tokens: JoinTokens { worker: token(1), manager: token(2) },
        ..ClusterRootCa::default()
    };
    cluster
}

fn config(cert: &str, key: &str, force_rotate: u64) -> CaConfig {
    CaConfig {
        signing_ca_cert: cert.as_bytes().to_vec(),
        signing_ca_key: Sensitive(key.as_bytes().to_vec()),
        force_rotate,
        ..CaConfig::default()
    }
}

fn of(root: &RootCa, force_rotate: u64) -> CaConfig {
    config(root.bundle().pem(), root.key_pem().expose(), force_rotate)
}

/// What becomes of the root, without asking anybody.
fn decide(cluster: &Cluster, wanted: &CaConfig) -> ClusterRootCa {
    match wanted_root(cluster, wanted, now()).unwrap() {
        WantedRoot::Decided(root_ca) => *root_ca,
        other => panic!("{other:?}"),
    }
}

fn unchanged(cluster: &Cluster, wanted: &CaConfig) -> bool {
    matches!(wanted_root(cluster, wanted, now()), Ok(WantedRoot::Unchanged))
}

fn refused(cluster: &Cluster, wanted: &CaConfig) -> (String, String) {
    let FieldError { field, problem } = wanted_root(cluster, wanted, now()).unwrap_err();
    (field, problem)
}

#[test]
fn nothing_asked_is_nothing_done() {
    let mut cluster = cluster(&root());
    assert!(unchanged(&cluster, &CaConfig::default()));
    cluster.root_ca.last_forced_rotation = 3;
    assert!(unchanged(&cluster, &config("", "", 3)));
}

#[test]
fn a_forced_rotation_brings_a_root_of_our_own_beside_the_old_one() {
    let old = root();
    let mut cluster = cluster(&old);
    let begun = decide(&cluster, &config("", "", 1));
    assert_eq!(begun.last_forced_rotation, 1);
    let rotation = begun.root_rotation.clone().unwrap();
    assert_eq!(ClusterRootCa { root_rotation: None, last_forced_rotation: 0, ..begun.clone() }, cluster.root_ca, "the old one stays");
    assert_ne!(rotation.ca_cert, begun.ca_cert);
    let new = RootCa::load(&text(&rotation.ca_cert), &secret(&rotation.ca_key)).unwrap();
    assert_eq!(target(&rotation).unwrap().public_key, new.bundle().issuer().public_key);

    // Forced again: the next one is cross-signed by the root that is trusted, not by the one that was on its way.
    cluster.root_ca = begun;
    let again = decide(&cluster, &config("", "", 2)).root_rotation.unwrap();
    assert_ne!(again.ca_cert, rotation.ca_cert);
    RootCa::during_rotation(old.bundle(), &text(&again.ca_cert), &secret(&again.ca_key), &text(&again.cross_signed_ca_cert)).unwrap();
}

#[test]
fn an_operators_own_root_is_taken_replaced_and_given_up() {
    let (old, one, other) = (root(), root(), root());
    let mut cluster = cluster(&old);
    let pending = |cluster: &Cluster| text(&cluster.root_ca.root_rotation.as_ref().unwrap().ca_cert);
    // However it is written: what is served has no text around it.
    let noisy = config(&format!("my root\n{}\n", one.bundle().pem()), one.key_pem().expose(), 0);
    cluster.root_ca = decide(&cluster, &noisy);
    assert_eq!(pending(&cluster), one.bundle().pem());

    // The same again changes nothing but the key, which is the same.
    let again = decide(&cluster, &of(&one, 0));
    assert_eq!(again, cluster.root_ca);
    let without_key = decide(&cluster, &config(one.bundle().pem(), "", 0));
    assert_eq!(without_key, cluster.root_ca);

    cluster.root_ca = decide(&cluster, &of(&other, 0));
    assert_eq!(pending(&cluster), other.bundle().pem());

    // The present one ends it, with or without its key; what was forced by the same order is not forced later.
    for key in [old.key_pem().expose(), ""] {
        let back = decide(&cluster, &config(old.bundle().pem(), key, 5));
        assert_eq!(back.root_rotation, None);
        assert_eq!(back.last_forced_rotation, 5);
        assert_eq!(back.ca_key, cluster.root_ca.ca_key);
    }
}

#[test]
fn what_cannot_be_a_root_names_its_field() {
    let old = root();
    let cluster = cluster(&old);
    let one = root();
    assert_eq!(refused(&cluster, &config("", one.key_pem().expose(), 0)).0, CERT);
    assert_eq!(refused(&cluster, &config("junk", "", 0)).0, CERT);
    assert_eq!(refused(&cluster, &config(one.bundle().pem(), "", 0)).0, KEY);
    assert_eq!(refused(&cluster, &config(one.bundle().pem(), "junk", 0)).0, KEY);
    let (field, problem) = refused(&cluster, &config(one.bundle().pem(), old.key_pem().expose(), 0));
    assert_eq!(field, KEY);
    assert!(problem.contains("does not belong"), "{problem}");

    let two = format!("{}{}", one.bundle().pem(), root().bundle().pem());
    let (field, problem) = refused(&cluster, &config(&two, one.key_pem().expose(), 0));
    assert_eq!(field, CERT);
    assert!(problem.contains("holds 2"), "{problem}");

    let nineteen_years = Duration::from_secs(19 * 365 * 24 * 3600 + 30 * 24 * 3600);
    let ending = RootCa::generate(now() - nineteen_years).unwrap();
    let (field, problem) = refused(&cluster, &of(&ending, 0));
    assert_eq!(field, CERT);
    assert!(problem.contains("within a year"), "{problem}");
    let coming = RootCa::generate(now() + Duration::from_secs(3600)).unwrap();
    assert!(refused(&cluster, &of(&coming, 0)).1.contains("not valid yet"));
}

/// P-384 with SHA-384, from `openssl req -x509`; then another certificate of the same key, and an RSA root.
const OPENSSL: [&str; 2] = [include_str!("openssl.crt"), include_str!("openssl.key")];
const OPENSSL_AGAIN: &str = include_str!("openssl_again.crt");
const OPENSSL_RSA: [&str; 2] = [include_str!("openssl_rsa.crt"), include_str!("openssl_rsa.key")];

#[test]
fn roots_made_by_others_sign_for_nodes() {
    let mut cluster = cluster(&root());
    // From ours to one of P-384, from there to RSA, and back to one of ours.
    for [cert, key] in [OPENSSL, OPENSSL_RSA] {
        cluster.root_ca = decide(&cluster, &config(cert, key, 0));
        cluster.root_ca = finished(&cluster.root_ca, [[1; 16], [2; 16]]).unwrap().unwrap();
    }
    assert!(decide(&cluster, &config("", "", 1)).root_rotation.is_some());
}

#[test]
fn the_key_of_the_present_root_is_no_new_root() {
    let [cert, key] = OPENSSL;
    let cluster = cluster(&RootCa::load(cert, &Secret::new(key.to_owned())).unwrap());
    let (field, problem) = refused(&cluster, &config(OPENSSL_AGAIN, key, 0));
    assert_eq!(field, KEY);
    assert!(problem.contains("present root"), "{problem}");
}

#[test]
fn the_end_puts_the_new_root_in_place_with_new_tokens() {
    let (old, new) = (root(), root());
    let mut cluster = cluster(&old);
    assert_eq!(finished(&cluster.root_ca, [[3; 16], [4; 16]]).unwrap(), None);
    cluster.root_ca = decide(&cluster, &of(&new, 7));
    let before = cluster.root_ca.join_tokens.clone();
    let end = finished(&cluster.root_ca, [[3; 16], [4; 16]]).unwrap().unwrap();
    assert_eq!(text(&end.ca_cert), new.bundle().pem());
    assert_eq!(secret(&end.ca_key), new.key_pem());
    assert_eq!(end.ca_cert_hash, new.bundle().digest_text());
    assert_eq!((end.root_rotation.is_none(), end.last_forced_rotation), (true, 7));
    for (token, old_token) in [(&end.join_tokens.worker, &before.worker), (&end.join_tokens.manager, &before.manager)] {
        assert_ne!(token, old_token);
        assert!(token.0.parse::<JoinToken>().unwrap().pins(new.bundle()));
    }
    assert_ne!(end.join_tokens.worker, end.join_tokens.manager);
}

#[test]
fn certificates_do_not_outlive_roots() {
    let life = |secs| check_lifetime(&CaConfig { node_cert_expiry: Some(Duration::from_secs(secs)), ..CaConfig::default() });
    assert!(life(2160 * 3600).is_ok() && life(ROOT_LIFETIME.as_secs()).is_ok());
    assert_eq!(life(u64::MAX).unwrap_err().field, "ca_config.node_cert_expiry");
}

fn external(url: &str, root: Option<&RootCa>) -> ExternalCa {
    let ca_cert = root.map(|root| root.bundle().pem().as_bytes().to_vec()).unwrap_or_default();
    ExternalCa { url: url.to_owned(), ca_cert, ..ExternalCa::default() }
}

#[test]
fn a_root_whose_key_is_outside_needs_somebody_there_who_signs() {
    let (old, new, other) = (root(), root(), root());
    let mut cluster = cluster(&old);
    let without_key = |entries: Vec<ExternalCa>| CaConfig { external_cas: entries, ..config(new.bundle().pem(), "", 0) };
    // An entry of another root, or of the present one, does not help.
    for entry in [external("https://a.example/", Some(&other)), external("https://a.example/", None)] {
        assert_eq!(refused(&cluster, &without_key(vec![entry])).0, KEY);
    }
    let entries = vec![external("https://a.example/", Some(&new)), external("https://b.example/", None)];
    let wanted = without_key(entries);
    cluster.root_ca = decide(&cluster, &wanted);
    assert!(cluster.root_ca.root_rotation.as_ref().unwrap().ca_key.0.is_empty());
    let required = entries_for(&wanted.external_cas, new.bundle(), old.bundle());
    assert_eq!((required.len(), required[0].url.as_str()), (1, "https://a.example/"));
    assert_eq!(requires_external(&cluster.root_ca, &wanted), Ok(true));
    assert_eq!(requires_external(&cluster.root_ca, &CaConfig::default()).unwrap_err().field, EXTERNAL);

    // In its place, it is the one that an entry without certificate belongs to.
    cluster.root_ca = finished(&cluster.root_ca, [[1; 16], [2; 16]]).unwrap().unwrap();
    let plain = CaConfig { external_cas: vec![external("https://b.example/", None)], ..CaConfig::default() };
    assert_eq!(requires_external(&cluster.root_ca, &plain), Ok(true));
    // It must sign for another root; with nobody who can, or with another whose key is elsewhere too, there is none.
    assert!(matches!(wanted_root(&cluster, &CaConfig { force_rotate: 1, ..plain.clone() }, now()), Ok(WantedRoot::Unsigned(_))));
    let given = CaConfig { external_cas: plain.external_cas.clone(), ..of(&other, 0) };
    assert!(matches!(wanted_root(&cluster, &given, now()), Ok(WantedRoot::Unsigned(_))));
    for nobody in
        [of(&other, 0), config("", "", 1), CaConfig { external_cas: vec![external("https://a.example/", Some(&old))], ..of(&other, 0) }]
    {
        let (field, problem) = refused(&cluster, &nobody);
        assert_eq!(field, EXTERNAL);
        assert!(problem.contains("has to sign the new root") && problem.contains("signing_ca_key"), "{problem}");
    }
    let both = CaConfig { external_cas: vec![external("https://c.example/", Some(&other))], ..config(other.bundle().pem(), "", 0) };
    let (field, problem) = refused(&cluster, &both);
    assert_eq!(field, KEY);
    assert!(problem.contains("so is that of the present root"), "{problem}");
    // With the key brought here, nobody is asked.
    cluster.root_ca = decide(&cluster, &of(&new, 0));
    assert_eq!(requires_external(&cluster.root_ca, &CaConfig::default()), Ok(false));
    assert!(decide(&cluster, &of(&other, 0)).root_rotation.is_some());
}

#[test]
fn a_key_can_be_brought_to_a_rotation_under_way() {
    let (old, new) = (root(), root());
    let mut cluster = cluster(&old);
    let entries = vec![external("https://a.example/", Some(&new))];
    let without_key = CaConfig { external_cas: entries, ..config(new.bundle().pem(), "", 0) };
    cluster.root_ca = decide(&cluster, &without_key);
    let with_key = decide(&cluster, &of(&new, 0)).root_rotation.unwrap();
    assert_eq!(secret(&with_key.ca_key), new.key_pem());
    assert_eq!(requires_external(&ClusterRootCa { root_rotation: Some(with_key), ..cluster.root_ca }, &CaConfig::default()), Ok(false));
}
