//! Placeholders in env values, hostname and mounts: `{{.Task.Slot}}` (wire-behaviour 20.4).
//!
//! Nodes expand them; here it is only made sure that they can: braces closed, fields known. Functions and pipes of Go's templates
//! pass, what they do is for the node to say.

const FIELDS: [&str; 10] = [
    ".Service.ID",
    ".Service.Name",
    ".Service.Labels",
    ".Node.ID",
    ".Node.Hostname",
    ".Node.Platform.Architecture",
    ".Node.Platform.OS",
    ".Task.ID",
    ".Task.Name",
    ".Task.Slot",
];

/// # Errors
/// What is wrong, with the cure.
pub fn check_template(text: &str) -> Result<(), String> {
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        let Some(length) = rest[start..].find("}}") else {
            return Err(format!("{text:?} has a placeholder that is not closed; write {{{{.Task.Slot}}}}, or leave the braces out"));
        };
        let inside = &rest[start + 2..start + length];
        check_action(inside).map_err(|unknown| {
            format!("{text:?} uses {unknown}, which does not exist; there are {} and .Service.Labels.NAME", FIELDS.join(", "))
        })?;
        rest = &rest[start + length + 2..];
    }
    Ok(())
}

fn check_action(inside: &str) -> Result<(), String> {
    // Texts in quotes may hold anything.
    let bare: String = inside.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    for word in bare.split(|c: char| c.is_whitespace() || "()|".contains(c)).filter(|word| word.starts_with('.') && word.len() > 1) {
        let known = FIELDS.contains(&word)
            || word.starts_with(".Service.Labels.")
            || FIELDS.iter().any(|field| field.starts_with(word) && field.as_bytes().get(word.len()) == Some(&b'.'));
        if !known {
            return Err(word.to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_template;

    #[test]
    fn known_placeholders_pass_and_others_are_named() {
        assert_eq!(check_template("web-{{.Task.Slot}}-{{ .Node.Hostname }}"), Ok(()));
        assert_eq!(check_template("{{index .Service.Labels \"a.b\"}}"), Ok(()));
        assert_eq!(check_template("no braces { } at all"), Ok(()));
        assert!(check_template("{{.Task.Number}}").expect_err("unknown").contains(".Task.Number"));
        assert!(check_template("{{.Task.Slot").expect_err("open").contains("not closed"));
    }
}
