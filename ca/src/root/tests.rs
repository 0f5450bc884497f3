use super::*;
use x509_parser::extensions::{GeneralName, ParsedExtension};

const NOW: SystemTime = UNIX_EPOCH;

fn now() -> SystemTime {
    NOW + Duration::from_secs(1_800_000_029) // 29 s after a full minute
}

fn subject(role: NodeRole) -> Subject {
    Subject { node: NodeId::for_test(1), role, cluster: ClusterId::for_test(9) }
}

fn chain_of(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let san = certificate.subject_alternative_name().unwrap().unwrap();
    san.value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            other => panic!("unexpected name {other:?}"),
        })
        .collect()
}

#[test]
fn a_root_is_as_swarmkit_makes_it() {
    let root = RootCa::generate(now()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&root.bundle().certificates()[0]).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=swarm-ca");
    let name = [b"\x30\x13\x31\x11\x30\x0f\x06\x03\x55\x04\x03\x13\x08".as_slice(), b"swarm-ca"].concat();
    assert_eq!(certificate.subject().as_raw(), name, "a PrintableString, as Go writes it");
    assert!(certificate.is_ca());
    assert_eq!(certificate.basic_constraints().unwrap().unwrap().value.path_len_constraint, None);
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    let validity = certificate.validity();
    assert_eq!(validity.not_before.timestamp(), 1_800_000_029 - 300);
    assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 630_720_000);
}

#[test]
fn a_node_certificate_says_what_the_ca_decides() {
    let root = RootCa::generate(now()).unwrap();
    let key = NodeKey::generate().unwrap();
    let request = key.request().unwrap();
    let issued = root.issue(request.as_bytes(), &subject(NodeRole::Manager), DEFAULT_LIFETIME, now()).unwrap();
    let chain = chain_of(&issued.chain_pem);
    assert_eq!(chain.len(), 1);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let node = NodeId::for_test(1);
    assert_eq!(leaf.subject().iter_common_name().next().unwrap().as_str().unwrap(), node.as_str());
    assert_eq!(leaf.subject().iter_organizational_unit().next().unwrap().as_str().unwrap(), "swarm-manager");
    assert_eq!(leaf.subject().iter_organization().next().unwrap().as_str().unwrap(), ClusterId::for_test(9).as_str());
    assert_eq!(names(&leaf), ["swarm-manager", node.as_str(), "swarm-ca"]);
    assert_eq!(leaf.validity().not_before.timestamp(), 1_800_000_000 - 3600);
    assert_eq!(leaf.validity().not_after.timestamp(), 1_800_000_000 + 2160 * 3600);
    assert_eq!(issued.not_after, UNIX_EPOCH + Duration::from_secs(1_800_000_000 + 2160 * 3600));
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(leaf.iter_extensions().any(|e| matches!(e.parsed_extension(), ParsedExtension::SubjectKeyIdentifier(_))));
    assert_eq!(leaf.raw_serial().len(), 20);
    assert_eq!(leaf.public_key().raw, key.public_key_info());
    root.bundle().verify(&chain, now()).unwrap();

    let worker = root.issue(request.as_bytes(), &subject(NodeRole::Worker), DEFAULT_LIFETIME, now()).unwrap();
    let worker = chain_of(&worker.chain_pem);
    let (_, worker) = X509Certificate::from_der(&worker[0]).unwrap();
    assert_eq!(names(&worker), ["swarm-worker", node.as_str()]);
    assert_ne!(worker.raw_serial(), leaf.raw_serial(), "the same key twice must not give the same serial");
}

#[test]
fn a_request_cannot_make_itself_a_ca_or_another_node() {
    let root = RootCa::generate(now()).unwrap();
    let key = NodeKey::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["swarm-manager".to_owned(), "evil.example".to_owned()]).unwrap();
    greedy.distinguished_name.push(DnType::OrganizationalUnitName, "swarm-manager");
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    let request = greedy.serialize_request(key.pair()).unwrap().pem().unwrap();
    let issued = root.issue(request.as_bytes(), &subject(NodeRole::Worker), DEFAULT_LIFETIME, now()).unwrap();
    let chain = chain_of(&issued.chain_pem);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(!leaf.is_ca());
    assert_eq!(names(&leaf), ["swarm-worker", NodeId::for_test(1).as_str()]);
    assert_eq!(leaf.subject().iter_organizational_unit().count(), 1);
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert!(!leaf.extended_key_usage().unwrap().unwrap().value.any);
}

#[test]
fn a_bad_lifetime_is_refused_or_replaced() {
    let root = RootCa::generate(now()).unwrap();
    let request = NodeKey::generate().unwrap().request().unwrap();
    let worker = subject(NodeRole::Worker);
    let short = root.issue(request.as_bytes(), &worker, Duration::from_secs(3599), now()).unwrap();
    assert_eq!(short.not_after, UNIX_EPOCH + Duration::from_secs(1_800_000_000) + DEFAULT_LIFETIME);
    let endless = root.issue(request.as_bytes(), &worker, Duration::MAX, now());
    assert_eq!(endless, Err(CaError::Lifetime));
    let far = root.issue(request.as_bytes(), &worker, Duration::from_secs(400_000_000_000), now());
    assert_eq!(far, Err(CaError::Lifetime));
}

#[test]
fn a_stored_root_signs_on() {
    let root = RootCa::generate(now()).unwrap();
    let again = RootCa::load(root.bundle().pem(), &root.key_pem()).unwrap();
    let request = NodeKey::generate().unwrap().request().unwrap();
    let issued = again.issue(request.as_bytes(), &subject(NodeRole::Worker), DEFAULT_LIFETIME, now()).unwrap();
    root.bundle().verify(&chain_of(&issued.chain_pem), now()).unwrap();

    let other = RootCa::generate(now()).unwrap();
    assert_eq!(RootCa::load(root.bundle().pem(), &other.key_pem()).unwrap_err(), CaError::Key(BadKey::Mismatch));
}

#[test]
fn during_a_rotation_both_roots_accept_a_new_leaf() {
    let (old, new) = (RootCa::generate(now()).unwrap(), RootCa::generate(now()).unwrap());
    let cross = old.cross_sign(new.bundle()).unwrap();
    let rotating = RootCa::during_rotation(old.bundle(), new.bundle().pem(), &new.key_pem(), &cross).unwrap();
    let request = NodeKey::generate().unwrap().request().unwrap();
    let issued = rotating.issue(request.as_bytes(), &subject(NodeRole::Worker), DEFAULT_LIFETIME, now()).unwrap();
    let chain = chain_of(&issued.chain_pem);
    assert_eq!(chain.len(), 2);
    old.bundle().verify(&chain, now()).unwrap();
    new.bundle().verify(&chain, now()).unwrap();
    assert!(old.bundle().verify(&chain[..1], now()).is_err(), "without the cross certificate the old root knows nothing");
    assert_eq!(rotating.bundle(), old.bundle());

    let (_, crossed) = X509Certificate::from_der(&chain[1]).unwrap();
    let (_, plain) = X509Certificate::from_der(&new.bundle().certificates()[0]).unwrap();
    assert_eq!(crossed.raw_serial(), plain.raw_serial());
    assert_eq!(crossed.validity(), plain.validity());
    let kept = |certificate: &X509Certificate<'_>| {
        let wanted = |e: &&x509_parser::extensions::X509Extension<'_>| e.oid.to_id_string() != "2.5.29.35";
        certificate.extensions().iter().filter(wanted).map(|e| (e.oid.to_id_string(), e.critical, e.value.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(kept(&crossed), kept(&plain));
    let key_id = |certificate: &X509Certificate<'_>| {
        certificate.iter_extensions().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    };
    let issuer_id = crossed.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    let (_, signer) = X509Certificate::from_der(&old.bundle().certificates()[0]).unwrap();
    assert_eq!(issuer_id, key_id(&signer));
    assert!(issuer_id.is_some());

    let stranger = RootCa::generate(now()).unwrap();
    let wrong = old.cross_sign(stranger.bundle()).unwrap();
    let refused = RootCa::during_rotation(old.bundle(), new.bundle().pem(), &new.key_pem(), &wrong);
    assert!(matches!(refused, Err(CaError::CrossCertificate)));
}

#[test]
fn a_chain_is_refused_when_its_time_is_over() {
    let root = RootCa::generate(now()).unwrap();
    let request = NodeKey::generate().unwrap().request().unwrap();
    let issued = root.issue(request.as_bytes(), &subject(NodeRole::Worker), MIN_LIFETIME, now()).unwrap();
    let chain = chain_of(&issued.chain_pem);
    root.bundle().verify(&chain, now() + Duration::from_secs(3500)).unwrap();
    assert!(root.bundle().verify(&chain, now() + Duration::from_secs(3700)).is_err());
    assert!(root.bundle().verify(&chain, now() - Duration::from_secs(3700)).is_err());
}

#[test]
fn somebody_else_is_told_all_that_a_cross_signed_certificate_needs() {
    let root = RootCa::generate(now()).unwrap();
    let asked = root.cross_request().unwrap();
    let key = public_key_of_request(asked.pem.as_bytes()).unwrap();
    let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(asked.pem.as_bytes()).unwrap();
    let (_, request) = x509_parser::certification_request::X509CertificationRequest::from_der(&der).unwrap();
    let issuer = root.bundle().issuer();
    assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&key), issuer.public_key);
    assert_eq!(request.certification_request_info.subject.as_raw(), issuer.subject);
    assert_eq!(asked.name, [("CN", ROOT_NAME.to_owned())]);
    assert_eq!((asked.constraints.as_slice(), asked.constraints_critical), ([0x30, 3, 1, 1, 0xff].as_slice(), true));
}

#[test]
fn a_cross_signed_certificate_with_the_name_in_other_bytes_is_told_from_one_that_leads_nowhere() {
    let (old, new) = (RootCa::generate(now()).unwrap(), RootCa::generate(now()).unwrap());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, ROOT_NAME); // as UTF8String
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signed_by = |root: &RootCa, params: &CertificateParams| {
        let issuer = Issuer::from_ca_cert_der(&root.signer.certificate, root.signer.key.pair()).unwrap();
        certificate_pem(params.signed_by(new.signer.key.pair(), &issuer).unwrap().der())
    };
    let rotate = |cross: &str| RootCa::during_rotation(old.bundle(), new.bundle().pem(), &new.key_pem(), cross).unwrap_err();
    assert_eq!(rotate(&signed_by(&old, &params)), CaError::CrossName);
    assert_eq!(rotate(&signed_by(&new, &params)), CaError::CrossCertificate);
    params.distinguished_name.push(DnType::CommonName, DnValue::PrintableString(ROOT_NAME.try_into().unwrap()));
    params.is_ca = IsCa::ExplicitNoCa;
    assert_eq!(rotate(&signed_by(&old, &params)), CaError::CrossIsNoCa);
}
