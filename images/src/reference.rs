//! Image references: what people type (`nginx`) and what it stands for (`docker.io/library/nginx:latest`).
//!
//! The grammar is that of Docker's `distribution/reference` package, because the same words must mean the same image
//! to every tool of the field. Pure, and without dependencies of this crate.

use std::fmt;
use std::str::FromStr;

/// Longest `registry/repository` part, as `distribution/reference` `NameTotalLengthMax`.
const MAX_NAME: usize = 255;
/// Longest tag, as `distribution/reference` `TagRegexp`.
const MAX_TAG: usize = 128;
/// Nothing valid is longer (name, tag, digest and separators); longer text is not even echoed.
const MAX_TEXT: usize = 512;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// Why a text is no image reference, in words for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("image reference is empty; write a name such as nginx:1.27")]
    Empty,
    #[error("image reference is {length} bytes long; a name has at most {MAX_NAME}, a tag at most {MAX_TAG}")]
    TooLong { length: usize },
    #[error("image reference has a control character or a space at byte {at}; remove it")]
    ControlCharacter { at: usize },
    #[error("image name {name:?} has upper case letters; repository names are lower case")]
    UpperCase { name: String },
    #[error("registry {domain:?} is no host name with an optional port")]
    BadDomain { domain: String },
    #[error(
        "image name {name:?} is malformed at {component:?}; parts are lower case letters and digits, \
         joined by one '.', one or two '_', or any number of '-'"
    )]
    BadName { name: String, component: String },
    #[error("image name {name:?} is a bare 64-digit hexadecimal id; name a repository instead")]
    LooksLikeId { name: String },
    #[error(
        "tag {tag:?} is malformed; it has letters, digits, '_', '.', '-', starts with none of the last two, and at most {MAX_TAG} bytes"
    )]
    BadTag { tag: String },
    #[error("digest {digest:?} is malformed; it is sha256: and 64 lower case hexadecimal digits")]
    BadDigest { digest: String },
}

/// A normalised image reference: always a registry, a repository, and a tag or a digest or both.
///
/// `Display` gives the familiar form (`nginx:latest`), [`canonical`](Self::canonical) the full one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Parses and normalises; a missing registry is `docker.io`, a missing tag `latest` unless there is a digest.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        check_text(text)?;
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(check_digest(digest)?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the registry's port.
        let (name, tag) = match rest.rfind(':').filter(|colon| !rest[*colon..].contains('/')) {
            Some(colon) => (&rest[..colon], Some(check_tag(&rest[colon + 1..])?)),
            None => (rest, None),
        };
        let (domain, path) = split_domain(name);
        check_domain(&domain)?;
        check_path(name, &path)?;
        let length = domain.len() + 1 + path.len();
        if length > MAX_NAME {
            return Err(ReferenceError::TooLong { length });
        }
        let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { domain, path, tag, digest })
    }

    /// Whether people need not write its registry.
    pub fn is_of_default_registry(&self) -> bool {
        self.domain == DEFAULT_DOMAIN
    }

    /// The registry's host and port as written, `docker.io` for the default one.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry, `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:…`, where the reference is pinned.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// `docker.io/library/nginx`, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The full form, `docker.io/library/nginx:latest@sha256:…`.
    pub fn canonical(&self) -> String {
        self.with_suffix(self.repository())
    }

    /// The name under which an image is kept locally. A digest says everything, so it silences the tag.
    pub fn local_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.repository()),
            (None, Some(tag)) => format!("{}:{tag}", self.repository()),
            (None, None) => self.repository(),
        }
    }

    /// What a registry is asked for: the digest if there is one, else the tag.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// The same repository pinned to `digest` (`sha256:…`); the tag stays for people to read.
    pub fn pinned(&self, digest: &str) -> Result<Self, ReferenceError> {
        Ok(Self { digest: Some(check_digest(digest)?), ..self.clone() })
    }

    /// The same without its digest; without a tag it becomes `latest`.
    pub fn unpinned(&self) -> Self {
        let tag = self.tag.clone().or_else(|| Some(DEFAULT_TAG.to_owned()));
        Self { digest: None, tag, ..self.clone() }
    }

    fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            // library/a/b is an ordinary repository: shortening it would change its meaning.
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest);
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.familiar_name()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

fn check_text(text: &str) -> Result<(), ReferenceError> {
    if text.is_empty() {
        return Err(ReferenceError::Empty);
    }
    if text.len() > MAX_TEXT {
        return Err(ReferenceError::TooLong { length: text.len() });
    }
    match text.char_indices().find(|(_, c)| c.is_control() || c.is_whitespace()) {
        Some((at, _)) => Err(ReferenceError::ControlCharacter { at }),
        None => Ok(()),
    }
}

/// As `distribution/reference` `splitDockerDomain`: the first part is a registry if it looks like a host.
fn split_domain(name: &str) -> (String, String) {
    let looks_like_host = |first: &str| first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase);
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("{OFFICIAL_PREFIX}{path}") } else { path.to_owned() };
    (domain.to_owned(), path)
}

fn check_domain(domain: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::BadDomain { domain: domain.to_owned() };
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            (None, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) })
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    if let Some(port) = port
        && (!port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().map_or(true, |port| port == 0))
    {
        return Err(bad());
    }
    let label_is_good = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.is_some_and(|host| !host.split('.').all(label_is_good)) {
        return Err(bad());
    }
    Ok(())
}

fn check_path(name: &str, path: &str) -> Result<(), ReferenceError> {
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase { name: name.to_owned() });
    }
    if let Some(component) = path.split('/').find(|component| !component_is_good(component)) {
        return Err(ReferenceError::BadName { name: name.to_owned(), component: component.to_owned() });
    }
    // As `ParseNormalizedNamed`: such a name could not be told from an image id.
    if name.len() == 64 && name.bytes().all(is_lower_hex) {
        return Err(ReferenceError::LooksLikeId { name: name.to_owned() });
    }
    Ok(())
}

/// `alnum (separator alnum)*`, where a separator is `.`, `_`, `__` or any number of `-`.
fn component_is_good(component: &str) -> bool {
    let is_alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_are_good = bytes.first().copied().is_some_and(is_alnum) && bytes.last().copied().is_some_and(is_alnum);
    let separators_are_good = bytes
        .split(|b| is_alnum(*b))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'));
    ends_are_good && separators_are_good
}

fn check_tag(tag: &str) -> Result<String, ReferenceError> {
    let starts_well = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest_is_good = tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if starts_well && rest_is_good && tag.len() <= MAX_TAG {
        Ok(tag.to_owned())
    } else {
        Err(ReferenceError::BadTag { tag: tag.to_owned() })
    }
}

fn check_digest(digest: &str) -> Result<String, ReferenceError> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(is_lower_hex) => Ok(digest.to_owned()),
        _ => Err(ReferenceError::BadDigest { digest: digest.to_owned() }),
    }
}

fn is_lower_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn canonical(text: &str) -> String {
        Reference::parse(text).unwrap().canonical()
    }

    #[test]
    fn short_names_get_registry_library_and_tag() {
        assert_eq!(canonical("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(canonical("nginx:1.27"), "docker.io/library/nginx:1.27");
        assert_eq!(canonical("me/app"), "docker.io/me/app:latest");
        assert_eq!(canonical("index.docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(canonical("ghcr.io/a/b/c:v1"), "ghcr.io/a/b/c:v1");
        assert_eq!(canonical("localhost/app"), "localhost/app:latest");
        assert_eq!(canonical("127.0.0.1:5000/app"), "127.0.0.1:5000/app:latest");
        assert_eq!(canonical("[::1]:5000/app:x"), "[::1]:5000/app:x");
        assert_eq!(canonical("a/b_c/d__e/f--g/h.i"), "docker.io/a/b_c/d__e/f--g/h.i:latest");
    }

    #[test]
    fn a_digest_pins_and_adds_no_tag() {
        let pinned = Reference::parse(&format!("nginx@sha256:{HEX}")).unwrap();
        assert_eq!(pinned.tag(), None);
        assert_eq!(pinned.canonical(), format!("docker.io/library/nginx@sha256:{HEX}"));
        let both = Reference::parse(&format!("r:5000/app:v1@sha256:{HEX}")).unwrap();
        assert_eq!(both.to_string(), format!("r:5000/app:v1@sha256:{HEX}"));
        assert_eq!(both.local_name(), format!("r:5000/app@sha256:{HEX}"));
        assert_eq!(both.version(), format!("sha256:{HEX}"));
        assert_eq!(both.unpinned().canonical(), "r:5000/app:v1");
        assert_eq!(pinned.unpinned().to_string(), "nginx:latest");
    }

    #[test]
    fn the_familiar_form_parses_to_the_same_reference() {
        for text in ["nginx", "me/app:v2", "localhost:5000/x", "docker.io/library/a/b", "a.b/c@sha256:"] {
            let text = if text.ends_with(':') { format!("{text}{HEX}") } else { text.to_owned() };
            let first = Reference::parse(&text).unwrap();
            assert_eq!(Reference::parse(&first.to_string()).unwrap(), first, "{text}");
            assert_eq!(Reference::parse(&first.canonical()).unwrap(), first, "{text}");
        }
        assert_eq!(Reference::parse("docker.io/library/nginx").unwrap().to_string(), "nginx:latest");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_parses_to_what_it_prints(text in "\\PC{0,40}|[a-z0-9._:/@-]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                proptest::prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference.clone()));
                proptest::prop_assert_eq!(Reference::parse(&reference.canonical()), Ok(reference.clone()));
                proptest::prop_assert_eq!(
                    Reference::parse(&reference.local_name()).map(|local| local.local_name()),
                    Ok(reference.local_name())
                );
            }
        }
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        use ReferenceError as E;
        let refusal = |text: &str| Reference::parse(text).unwrap_err();
        assert_eq!(refusal(""), E::Empty);
        assert!(matches!(refusal("Nginx"), E::UpperCase { .. }));
        assert!(matches!(refusal("me/App"), E::UpperCase { .. }));
        assert!(matches!(refusal("nginx:"), E::BadTag { .. }));
        assert!(matches!(refusal("nginx:-x"), E::BadTag { .. }));
        assert!(matches!(refusal(&format!("nginx:{}", "t".repeat(129))), E::BadTag { .. }));
        assert!(matches!(refusal("nginx@sha256:abc"), E::BadDigest { .. }));
        assert!(matches!(refusal(&format!("nginx@sha256:{}", HEX.to_uppercase())), E::BadDigest { .. }));
        assert!(matches!(refusal("nginx@"), E::BadDigest { .. }));
        assert!(matches!(refusal("ngi nx"), E::ControlCharacter { at: 3 }));
        assert!(matches!(refusal("nginx\0"), E::ControlCharacter { at: 5 }));
        assert!(matches!(refusal("a//b"), E::BadName { .. }));
        assert!(matches!(refusal("a/../b"), E::BadName { .. }));
        assert!(matches!(refusal("/nginx"), E::BadName { .. }));
        assert!(matches!(refusal("a___b"), E::BadName { .. }));
        assert!(matches!(refusal("-a"), E::BadName { .. }));
        assert!(matches!(refusal("nginx/"), E::BadName { .. }));
        assert!(matches!(refusal("näme"), E::BadName { .. }));
        assert!(matches!(refusal("host:0/a"), E::BadDomain { .. }));
        assert!(matches!(refusal("host:65536/a"), E::BadDomain { .. }));
        assert!(matches!(refusal("host:x/a"), E::BadDomain { .. }));
        assert!(matches!(refusal("-bad.io/a"), E::BadDomain { .. }));
        assert!(matches!(refusal(HEX), E::LooksLikeId { .. }));
        assert!(matches!(refusal(&"a".repeat(300)), E::TooLong { .. }));
        let huge = refusal(&"a".repeat(1_000_000));
        assert!(huge.to_string().len() < 200);
    }
}
