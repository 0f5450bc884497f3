//! `WWW-Authenticate`: what a registry wants before it answers. RFC 9110 §11.6.1, distribution `token` specification. Pure.

/// The one of the offered schemes that we use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Picks Bearer, else Basic, from the values of all `WWW-Authenticate` headers.
pub(super) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in split_challenges(header) {
            let get = |name: &str| parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = get("realm")
            {
                return Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// `Bearer a="b", c=d, Basic realm="x"`: a word that is followed by no `=` starts the next scheme.
fn split_challenges(header: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(['=', ' ', '\t', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return challenges;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            challenges.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = take_value(value.trim_start());
        if let Some((_, parameters)) = challenges.last_mut() {
            parameters.push((word.to_owned(), value));
        }
        rest = after;
    }
}

/// A token, or a quoted string with backslash escapes.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn docker_hubs_challenge_is_understood() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
        assert_eq!(
            parse([header]),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/nginx:pull"))
        );
    }

    #[test]
    fn bearer_wins_over_basic_in_any_order() {
        assert_eq!(parse([r#"Basic realm="a, b", Bearer realm=https://x/t"#]), bearer("https://x/t", None, None));
        assert_eq!(parse(["Basic realm=x", "bearer Realm = \"https://y\""]), bearer("https://y", None, None));
        assert_eq!(parse([r#"BASIC realm="say \"hi\"""#]), Some(Challenge::Basic));
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read_to_its_end(header in "[a-zA-Z=\", \\\\\\t]{0,60}|\\PC{0,60}") {
            let _ = parse([header.as_str()]);
        }
    }

    #[test]
    fn rubbish_gives_nothing_and_ends() {
        for rubbish in ["", ",,,", "Negotiate", "Bearer", "=", "a=\"", "Bearer realm", "Digest x=\"\\"] {
            assert_eq!(parse([rubbish]), None, "{rubbish}");
        }
    }
}
