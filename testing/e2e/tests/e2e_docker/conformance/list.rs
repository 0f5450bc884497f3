//! The list as written: cases, and the lines of each.

use super::answers::{Answer, Comparison};
use anyhow::{Context as _, Result, bail, ensure};
use std::fmt;

/// Lines that build on each other.
pub struct Case {
    pub name: String,
    pub lines: Vec<Line>,
}

impl Case {
    /// It makes one service and removes it.
    pub fn is_of_service(&self) -> bool {
        matches!(self.lines.as_slice(), [Line { word: Word::Create | Word::Update { .. }, .. }])
    }
}

/// What is asked, and what is wanted of the answers.
pub struct Line {
    pub word: Word,
    /// Flags or commands.
    pub text: String,
    /// Why the answers are not the same.
    pub differs: Option<String>,
}

/// See the head of conformance.txt.
pub enum Word {
    Create,
    Update { more: String },
    Same,
    Refused,
    Words,
    Do,
    Until { text: String },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.word {
            Word::Create => write!(f, "create {}", self.text),
            Word::Update { more } => write!(f, "update {} | {more}", self.text),
            _ => f.write_str(&self.text),
        }
    }
}

impl Line {
    fn read(text: &str) -> Result<Self> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let two = || rest.split_once('|').map(|(one, other)| (one.trim().to_owned(), other.trim().to_owned()));
        let (word, text) = match word {
            "create" => (Word::Create, rest.to_owned()),
            "update" => {
                let (flags, more) = two().unwrap_or_default();
                (Word::Update { more }, flags)
            }
            "same" => (Word::Same, rest.to_owned()),
            "refused" => (Word::Refused, rest.to_owned()),
            "words" => (Word::Words, rest.to_owned()),
            "do" => (Word::Do, rest.to_owned()),
            "until" => {
                let (text, commands) = two().context("until TEXT | COMMANDS")?;
                (Word::Until { text }, commands)
            }
            other => bail!("{other:?} is no word of the list"),
        };
        Ok(Self { word, text, differs: None })
    }

    pub fn compare(&self, ours: &Answer, theirs: &Answer) -> Comparison {
        match self.word {
            // What matters was seen already.
            Word::Do | Word::Until { .. } => Comparison::Same,
            Word::Create | Word::Update { .. } | Word::Same => ours.compare(theirs),
            Word::Refused => ours.compare_refusals(theirs, false),
            Word::Words => ours.compare_refusals(theirs, true),
        }
    }
}

/// # Errors
/// Where the text is not as its head says.
pub fn read(text: &str) -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    let mut is_open = false;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let place = || format!("line {}: {line}", number + 1);
        if line.trim().is_empty() {
            is_open = false;
        } else if let Some(reason) = line.trim_start().strip_prefix("differs ") {
            let last = cases.last_mut().and_then(|case| case.lines.last_mut()).with_context(place)?;
            last.differs = Some(reason.to_owned());
        } else if let Some(name) = line.strip_prefix("case ") {
            cases.push(Case { name: name.to_owned(), lines: Vec::new() });
            is_open = true;
        } else {
            let read = Line::read(line).with_context(place)?;
            match cases.last_mut().filter(|_| is_open) {
                Some(case) => case.lines.push(read),
                None => cases.push(Case { name: "one service".into(), lines: vec![read] }),
            }
        }
    }
    let lines: usize = cases.iter().map(|case| case.lines.len()).sum();
    ensure!(cases.len() > 100 && lines > 300, "only {} cases of {lines} lines were read", cases.len());
    Ok(cases)
}
