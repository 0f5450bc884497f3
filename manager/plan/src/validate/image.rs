//! A compact check of image references. The full grammar, with normalising, is in the images crate; the manager only refuses what
//! no node could pull.

use skep_types::FieldError;

const CURE: &str = "write [HOST[:PORT]/]NAME[:TAG][@DIGEST], such as nginx:1.27 or registry.example.org:5000/team/app@sha256:…";

/// # Errors
/// [`FieldError`] for the field `image`.
pub fn check_image(reference: &str) -> Result<(), FieldError> {
    let bad = |problem: String| Err(FieldError::new("image", problem));
    if reference.is_empty() {
        return bad(format!("is missing; {CURE}"));
    }
    let (rest, digest) = reference.split_once('@').map_or((reference, None), |(rest, digest)| (rest, Some(digest)));
    if let Some(digest) = digest.filter(|digest| !is_digest(digest)) {
        return bad(format!("{reference:?} has a bad digest {digest:?}; a digest looks like sha256:<64 hexadecimal digits>"));
    }
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return bad(format!("{reference:?} has a bad tag {tag:?}; a tag has up to 128 letters, digits, '_', '.' and '-'"));
    }
    let (host, path) = match name.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()) => {
            (Some(first), path)
        }
        _ => (None, name),
    };
    if name.len() > 255 {
        return bad(format!("has a name of {} characters; at most 255 are allowed", name.len()));
    }
    if let Some(host) = host.filter(|host| !is_host(host)) {
        return bad(format!("{reference:?} has a bad registry host {host:?}; {CURE}"));
    }
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return bad(format!("{reference:?} has capital letters in its name; write {:?}", path.to_ascii_lowercase()));
    }
    if !path.split('/').all(is_component) {
        return bad(format!("{reference:?} is not an image reference; {CURE}"));
    }
    Ok(())
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && algorithm.bytes().all(|c| c.is_ascii_alphanumeric() || b"+._-".contains(&c))
            && hex.len() >= 32
            && hex.bytes().all(|c| c.is_ascii_hexdigit())
            && (algorithm != "sha256" || hex.len() == 64)
    })
}

fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 128
        && bytes.next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
        && bytes.all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            return address.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Lower-case letters and digits, inside also '.', '_', '__' or any number of '-'.
fn is_component(text: &str) -> bool {
    let is_word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| is_word(*first) && is_word(*last));
    let separators = || text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|gap| !gap.is_empty());
    ends && separators().all(|gap| matches!(gap, "." | "_" | "__") || gap.bytes().all(|c| c == b'-'))
}

#[cfg(test)]
mod tests {
    use super::check_image;

    #[test]
    fn references_that_nodes_can_pull_pass() {
        for good in [
            "nginx",
            "nginx:1.27-alpine",
            "library/nginx",
            "localhost/app",
            "localhost:5000/app:v1",
            "registry.example.org/team/a__b/c-d.e",
            "[::1]:5000/app",
            "127.0.0.1:5000/a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "a:b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(check_image(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn references_that_no_node_can_pull_are_refused() {
        let long = "a".repeat(256);
        for bad in [
            "",
            ":tag",
            "Nginx",
            "a//b",
            "a:",
            "a:b:c",
            "a b",
            "-a",
            "a_",
            "a..b",
            "host:99999/a",
            "a@sha256:12",
            "a@",
            "http://x/a",
            "a/",
            long.as_str(),
        ] {
            assert!(check_image(bad).is_err(), "{bad}");
        }
        assert!(check_image("Nginx").expect_err("capital").problem.contains("\"nginx\""));
    }
}
