//! Tables, JSON and Go templates.

use crate::failure::Failure;
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};

/// What others wrote (errors of containers, names of nodes), harmless on a terminal and in one line: control characters, and those
/// that change the direction of text, are shown as `\u{1b}`.
pub fn plain(text: &str) -> Cow<'_, str> {
    let turns = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(|c: char| c.is_control() || turns(c)) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_control() {
            safe.extend(c.escape_debug());
        } else if turns(c) {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// The same for text that may have several lines.
pub fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// How a list is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    Table,
    /// One object a line, as the docker CLI.
    Json,
    /// A Go template for each row; the flag tells whether column titles come first.
    Template {
        text: String,
        titles: bool,
    },
}

impl std::str::FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "table" => Self::Table,
            "json" => Self::Json,
            template => {
                let (titles, body) = match template.strip_prefix("table ") {
                    Some(body) => (true, body),
                    None => (false, template),
                };
                let text = body.replace("\\t", "\t").replace("\\n", "\n");
                // Parsed once here, so that a mistake is a usage error.
                parse_template(&text)?;
                Self::Template { text, titles }
            }
        })
    }
}

fn parse_template(text: &str) -> Result<gtmpl::Template, String> {
    let mut template = gtmpl::Template::default();
    template.add_func("json", |arguments| {
        let value = arguments.first().map(to_json).unwrap_or(Value::Null);
        Ok(gtmpl::Value::String(value.to_string()))
    });
    template.add_func("upper", |arguments| {
        Ok(gtmpl::Value::String(arguments.first().map(ToString::to_string).unwrap_or_default().to_uppercase()))
    });
    template.add_func("lower", |arguments| {
        Ok(gtmpl::Value::String(arguments.first().map(ToString::to_string).unwrap_or_default().to_lowercase()))
    });
    template.parse(text).map_err(|error| format!("bad template: {error}"))?;
    Ok(template)
}

fn to_json(value: &gtmpl::Value) -> Value {
    match value {
        gtmpl::Value::Bool(value) => Value::Bool(*value),
        gtmpl::Value::String(value) => Value::String(value.clone()),
        gtmpl::Value::Array(values) => values.iter().map(to_json).collect(),
        gtmpl::Value::Object(fields) | gtmpl::Value::Map(fields) => {
            // gtmpl keeps fields unsorted; sorted output is stable.
            let sorted: std::collections::BTreeMap<_, _> = fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        gtmpl::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().map_or(Value::Null, Into::into),
        },
        gtmpl::Value::NoValue | gtmpl::Value::Nil | gtmpl::Value::Function(_) => Value::Null,
    }
}

fn from_json(value: &Value) -> gtmpl::Value {
    match value {
        Value::Null => gtmpl::Value::Nil,
        Value::Bool(value) => gtmpl::Value::Bool(*value),
        Value::String(value) => gtmpl::Value::String(value.clone()),
        Value::Array(values) => gtmpl::Value::Array(values.iter().map(from_json).collect()),
        Value::Object(fields) => gtmpl::Value::Object(fields.iter().map(|(key, value)| (key.clone(), from_json(value))).collect()),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap_or(0.0).into(),
        },
    }
}

/// One template over one value.
pub fn render(text: &str, value: &Value) -> Result<String, Failure> {
    let template = parse_template(text).map_err(Failure::failed)?;
    let context = gtmpl::Context::from(from_json(value));
    template.render(&context).map_err(|error| Failure::failed(format!("template: {error}")))
}

/// Rows with named columns, such as `ID`, `NAME`.
#[derive(Debug, Default)]
pub struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    cells: Vec<String>,
    /// What templates and JSON see besides the cells, or instead of a cell that is dressed up for people.
    more: Vec<(&'static str, String)>,
}

impl Table {
    pub fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.row_with(cells, Vec::new());
    }

    /// A row with fields that have no column; those named like a column are what templates and JSON see of it.
    pub fn row_with(&mut self, cells: Vec<String>, more: Vec<(&'static str, String)>) {
        debug_assert_eq!(cells.len(), self.titles.len());
        self.rows.push(Row { cells, more });
    }

    /// `CURRENT STATE` is `.CurrentState` in templates and JSON, `ID` stays `.ID`.
    fn field(title: &str) -> String {
        if title == "ID" {
            return "ID".into();
        }
        title
            .split(' ')
            .map(|word| {
                let mut letters = word.chars();
                letters.next().map(|first| first.to_string() + &letters.as_str().to_lowercase()).unwrap_or_default()
            })
            .collect()
    }

    fn object(&self, row: &Row, dress: impl Fn(&str) -> String) -> Value {
        let cells = self.titles.iter().zip(&row.cells).map(|(title, cell)| (Self::field(title), cell));
        let more = row.more.iter().map(|(field, value)| ((*field).to_owned(), value));
        Value::Object(cells.chain(more).map(|(field, value)| (field, Value::String(dress(value)))).collect())
    }

    /// The line of titles for a template.
    fn heading(&self) -> Value {
        let more = self.rows.first().map(|row| row.more.as_slice()).unwrap_or_default();
        let more = more.iter().map(|(field, _)| ((*field).to_owned(), Value::String(field.to_uppercase())));
        let titles = self.titles.iter().map(|title| (Self::field(title), Value::String((*title).into())));
        Value::Object(more.chain(titles).collect())
    }

    pub fn print(&self, format: &Format) -> Result<(), Failure> {
        put(&self.text(format)?)
    }

    /// What `print` prints.
    pub fn text(&self, format: &Format) -> Result<String, Failure> {
        let mut text = String::new();
        let harmless = |text: &str| plain(text).into_owned();
        match format {
            Format::Table => {
                let rows = self.rows.iter().map(|row| row.cells.iter().map(|cell| harmless(cell)).collect::<Vec<_>>());
                text = align(std::iter::once(self.titles.iter().map(ToString::to_string).collect()).chain(rows).collect());
            }
            Format::Json => {
                for row in &self.rows {
                    // JSON has escapes of its own.
                    text += &format!("{}\n", self.object(row, str::to_owned));
                }
            }
            Format::Template { text: template, titles } => {
                let mut lines = Vec::new();
                if *titles {
                    lines.push(render(template, &self.heading())?);
                }
                for row in &self.rows {
                    lines.push(render(template, &self.object(row, harmless))?);
                }
                text = if *titles {
                    align(lines.iter().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
                } else {
                    lines.iter().map(|line| format!("{line}\n")).collect()
                };
            }
        }
        Ok(text)
    }
}

/// Columns three blanks apart, the last one unpadded.
fn align(lines: Vec<Vec<String>>) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (column, cell) in line.iter().enumerate() {
            row += cell;
            if column + 1 < line.len() {
                row += &" ".repeat(widths[column] - cell.chars().count() + 3);
            }
        }
        text += row.trim_end();
        text.push('\n');
    }
    text
}

/// To standard output; a reader that went away (`| head`) ends us quietly.
pub fn put(text: &str) -> Result<(), Failure> {
    put_bytes(text.as_bytes())
}

/// The same for bytes that a container wrote.
pub fn put_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Failure::from),
    }
}

/// Objects for people and programs: times as RFC 3339, lengths of time as `5s`, byte strings as text or hex.
pub fn readable<T: Serialize>(object: &T) -> Result<Value, Failure> {
    let value = serde_json::to_value(object).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(humanise("", value))
}

fn humanise(key: &str, value: Value) -> Value {
    match value {
        Value::String(text) if key == "registry_auth" && !text.is_empty() => Value::String("(sensitive)".into()),
        Value::Number(number) if key.ends_with("_at") || key == "timestamp" || key == "last_execution" => {
            number.as_i64().map_or(Value::Number(number), |nanos| Value::String(crate::when::rfc3339(skep_types::Timestamp(nanos))))
        }
        Value::Object(fields) if fields.len() == 2 && fields.contains_key("secs") && fields.contains_key("nanos") => {
            let number = |name: &str| fields[name].as_u64().unwrap_or(0);
            Value::String(crate::when::length(std::time::Duration::new(number("secs"), u32::try_from(number("nanos")).unwrap_or(0))))
        }
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(key, value)| (key.clone(), humanise(&key, value))).collect()),
        Value::Array(items)
            if !items.is_empty() && items.iter().all(|item| item.as_u64().is_some_and(|byte| byte < 256)) && is_bytes(key) =>
        {
            let bytes: Vec<u8> = items.iter().filter_map(Value::as_u64).filter_map(|byte| u8::try_from(byte).ok()).collect();
            Value::String(
                String::from_utf8(bytes).unwrap_or_else(|error| error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()),
            )
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| humanise(key, item)).collect()),
        other => other,
    }
}

fn is_bytes(key: &str) -> bool {
    matches!(
        key,
        "csr"
            | "certificate"
            | "ca_cert"
            | "trust_root"
            | "cert_issuer_subject"
            | "cert_issuer_public_key"
            | "data"
            | "payload"
            | "signing_ca_cert"
    )
}

/// `inspect`: one JSON array, or a template for each object.
pub fn inspect(objects: &[Value], format: Option<&str>) -> Result<(), Failure> {
    match format {
        None | Some("json") => {
            let text = serde_json::to_string_pretty(objects).map_err(|error| Failure::failed(error.to_string()))?;
            put(&format!("{text}\n"))
        }
        Some(template) => {
            // Programs get it as it is.
            let shown = std::io::stdout().is_terminal();
            for object in objects {
                let text = render(template, object)?;
                put(&format!("{}\n", if shown { plain_lines(&text) } else { text }))?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_line_up() {
        let lines = vec![vec!["ID".into(), "NAME".into()], vec!["long-id".into(), "é".into()]];
        assert_eq!(align(lines), "ID        NAME\nlong-id   é\n");
    }

    #[test]
    fn what_a_container_wrote_cannot_steer_the_terminal_or_forge_a_row() {
        let mut table = Table::new(&["NAME", "ERROR"]);
        table.row(vec!["web.1".into(), "\u{1b}[2J\u{7}\nweb.2  \u{202e}fine\u{9b}".into()]);
        let shown = r"\u{1b}[2J\u{7}\nweb.2  \u{202e}fine\u{9b}";
        assert_eq!(table.text(&Format::Table).unwrap(), format!("NAME    ERROR\nweb.1   {shown}\n"));
        assert_eq!(table.text(&"{{.Error}}".parse().unwrap()).unwrap(), format!("{shown}\n"));
        assert!(!table.text(&Format::Json).unwrap().contains('\u{1b}'));
        assert_eq!(plain("größer ☃"), "größer ☃");
        assert_eq!(crate::failure::Failure::failed("a\nb\u{1b}").to_string(), "a\nb\\u{1b}");
    }

    #[test]
    fn programs_see_a_cell_without_its_dress_and_fields_without_a_column() {
        let mut table = Table::new(&["ID", "HOSTNAME"]);
        table.row_with(vec!["a *".into(), "m1".into()], vec![("ID", "a".into()), ("Self", "true".into())]);
        assert_eq!(table.text(&Format::Table).unwrap(), "ID    HOSTNAME\na *   m1\n");
        assert_eq!(table.text(&"{{.ID}} {{.Self}}".parse().unwrap()).unwrap(), "a true\n");
        assert_eq!(table.text(&"table {{.Hostname}}\\t{{.Self}}".parse().unwrap()).unwrap(), "HOSTNAME   SELF\nm1         true\n");
    }

    #[test]
    fn titles_become_field_names() {
        assert_eq!(Table::field("CURRENT STATE"), "CurrentState");
        assert_eq!(Table::field("ID"), "ID");
    }

    #[test]
    fn go_templates_work_on_rows_and_objects() {
        let value = json!({"ID": "a", "Labels": {"x": "y"}, "n": 3});
        assert_eq!(render("{{.ID}}:{{.n}}", &value).unwrap(), "a:3");
        assert_eq!(render("{{json .Labels}}", &value).unwrap(), r#"{"x":"y"}"#);
        assert_eq!(render("{{range $k, $v := .Labels}}{{$k}}={{$v}}{{end}}", &value).unwrap(), "x=y");
        assert!("{{.ID".parse::<Format>().is_err());
    }

    #[test]
    fn credentials_are_not_shown() {
        let value = humanise("", json!({"container": {"image": "a", "registry_auth": "e30="}, "registry_auth": ""}));
        assert_eq!(value, json!({"container": {"image": "a", "registry_auth": "(sensitive)"}, "registry_auth": ""}));
    }

    #[test]
    fn times_are_readable() {
        let value = humanise("", json!({"created_at": 1_000_000_000i64, "delay": {"secs": 5, "nanos": 0}}));
        assert_eq!(value, json!({"created_at": "1970-01-01T00:00:01Z", "delay": "5s"}));
    }
}
