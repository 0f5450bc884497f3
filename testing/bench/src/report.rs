//! Results: a file for each benchmark, one table of all.

use crate::round::Sample;
use crate::stats::{Estimate, estimate, median};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// The same intervals from the same samples, whoever computes them.
pub const SEED: u64 = 20_261_122;
/// Above this share of the machine used by others, wall times say little (harness rule 2).
pub const FOREIGN_LIMIT: f64 = 0.15;

/// What was promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Ours divided by a peer's, at most.
    Ratio { against: &'static str, at_most: f64 },
    /// Ours divided into a peer's: so many times better at least.
    Times { against: &'static str, at_least: f64 },
    /// Ours alone, at most.
    Value(f64),
}

/// One figure and those of the others.
#[derive(Debug, Clone)]
pub struct Row {
    pub metric: String,
    pub unit: &'static str,
    pub ours: Option<f64>,
    pub peers: BTreeMap<String, f64>,
    /// Which of the peers is the floor, and its figure.
    pub floor: Option<(String, f64)>,
    pub ratio: Option<Estimate>,
    /// Whom the ratio is to.
    pub against: Option<String>,
    pub goal: Option<Goal>,
    pub note: String,
}

impl Row {
    /// A figure that was not compared round by round.
    #[must_use]
    pub fn plain(metric: impl Into<String>, unit: &'static str, ours: Option<f64>, goal: Option<Goal>) -> Self {
        Self {
            metric: metric.into(),
            unit,
            ours,
            peers: BTreeMap::new(),
            floor: None,
            ratio: None,
            against: None,
            goal,
            note: String::new(),
        }
    }

    #[must_use]
    pub fn peer(mut self, name: &str, value: f64) -> Self {
        self.peers.insert(name.to_owned(), value);
        self
    }

    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Whether the goal was reached; `None` without a goal or without a figure of ours.
    #[must_use]
    pub fn held(&self) -> Option<bool> {
        match self.goal? {
            Goal::Ratio { at_most, .. } => Some(self.ratio?.median <= at_most),
            Goal::Times { at_least, .. } => Some(self.ratio?.median * at_least <= 1.0),
            Goal::Value(most) => Some(self.ours? <= most),
        }
    }

    fn json(&self) -> Value {
        let goal = self.goal.map(|goal| match goal {
            Goal::Ratio { against, at_most } => json!({"ratio_to": against, "at_most": at_most}),
            Goal::Times { against, at_least } => json!({"times_better_than": against, "at_least": at_least}),
            Goal::Value(most) => json!({"value_at_most": most}),
        });
        json!({
            "name": self.metric,
            "ours": self.ours,
            "peers": self.peers,
            "floor": self.floor.as_ref().map(|(name, value)| json!({"name": name, "value": value})),
            "unit": self.unit,
            "ratio": self.ratio.map(|ratio| json!({"to": self.against, "median": ratio.median, "low": ratio.low, "high": ratio.high})),
            "goal": goal,
            "held": self.held(),
            "note": self.note,
        })
    }
}

/// A contender's mean in each round it took part in.
fn by_round(samples: &[Sample], contender: &str, value: &dyn Fn(&Sample) -> Option<f64>) -> BTreeMap<usize, f64> {
    let mut rounds: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.contender == contender) {
        if let Some(value) = value(sample) {
            rounds.entry(sample.round).or_default().push(value);
        }
    }
    rounds.into_iter().map(|(round, values)| (round, values.iter().sum::<f64>() / values.len() as f64)).collect()
}

/// The median of the rounds' ratios, with its interval.
#[must_use]
pub fn ratio(samples: &[Sample], ours: &str, theirs: &str, value: &dyn Fn(&Sample) -> Option<f64>) -> Option<Estimate> {
    let (ours, theirs) = (by_round(samples, ours, value), by_round(samples, theirs, value));
    let ratios: Vec<f64> =
        ours.iter().filter_map(|(round, value)| theirs.get(round).filter(|other| **other > 0.0).map(|other| value / other)).collect();
    estimate(&ratios, SEED)
}

/// A row from samples: medians of all, and the ratio to the peer whose name begins with `against`.
#[must_use]
pub fn compared(
    samples: &[Sample],
    (metric, unit): (impl Into<String>, &'static str),
    against: &'static str,
    at_most: Option<f64>,
    floor: &str,
    value: &dyn Fn(&Sample) -> Option<f64>,
) -> Row {
    let mut row = Row::plain(metric, unit, None, at_most.map(|at_most| Goal::Ratio { against, at_most }));
    let names: std::collections::BTreeSet<&str> = samples.iter().map(|sample| sample.contender.as_str()).collect();
    for name in names {
        let values: Vec<f64> = samples.iter().filter(|sample| sample.contender == name).filter_map(value).collect();
        let Some(middle) = median(&values) else { continue };
        match name {
            "skep" => row.ours = Some(middle),
            _ if name.starts_with(floor) => row.floor = Some((name.to_owned(), middle)),
            _ => drop(row.peers.insert(name.to_owned(), middle)),
        }
    }
    let named = samples.iter().map(|sample| sample.contender.as_str()).find(|name| name.starts_with(against));
    row.ratio = named.and_then(|against| ratio(samples, "skep", against, value));
    row.against = named.map(str::to_owned);
    row
}

/// The seconds of a mark, as milliseconds.
pub fn mark(name: &'static str) -> impl Fn(&Sample) -> Option<f64> {
    move |sample| sample.marks.iter().find(|mark| mark.0 == name).map(|mark| mark.1 * 1e3)
}

/// CPU milliseconds of the whole tree and of the kernel's threads.
#[must_use]
pub fn cpu(sample: &Sample) -> Option<f64> {
    Some((sample.tree + sample.kernel) * 1e3)
}

/// CPU milliseconds of the tree alone, which other people's load does not reach.
#[must_use]
pub fn tree_cpu(sample: &Sample) -> Option<f64> {
    Some(sample.tree * 1e3)
}

/// One benchmark's result.
#[derive(Debug)]
pub struct Report {
    pub name: &'static str,
    pub title: &'static str,
    pub rows: Vec<Row>,
    pub rounds: usize,
    pub foreign: Vec<f64>,
    pub load_before: String,
    /// Set-up and limits that a reader must know.
    pub remarks: Vec<String>,
}

#[must_use]
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = skep_kit::run(program, arguments).map(|output| output.stdout).unwrap_or_default();
    output.lines().next().unwrap_or_default().trim().to_owned()
}

impl Report {
    #[must_use]
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self { name, title, rows: Vec::new(), rounds: 0, foreign: Vec::new(), load_before: load(), remarks: Vec::new() }
    }

    /// Remembers how much others used, and warns in the result when it was too much.
    pub fn heard(&mut self, samples: &[Sample]) {
        self.foreign.extend(samples.iter().map(|sample| sample.foreign));
    }

    fn foreign_share(&self) -> f64 {
        median(&self.foreign).unwrap_or(0.0)
    }

    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let main = self.rows.iter().find(|row| row.goal.is_some()).or(self.rows.first()).map(Row::json).unwrap_or_default();
        let mut all = json!({
            "name": self.name,
            "title": self.title,
            "commit": said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short=12", "HEAD"]),
            "kernel": said("uname", &["-r"]),
            "versions": {"containerd": said("containerd", &["--version"]), "runc": said("runc", &["--version"]), "dockerd": "Debian docker.io 20.10.24"},
            "load_before": self.load_before,
            "load_after": load(),
            "foreign_share": self.foreign_share(),
            "noisy": self.foreign_share() > FOREIGN_LIMIT,
            "rounds": self.rounds,
            "seed": SEED,
            "remarks": self.remarks,
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        });
        // The first row with a goal stands for the whole where one figure is asked for.
        for key in ["ours", "peers", "floor", "unit", "ratio", "goal"] {
            all[key] = main[key].clone();
        }
        let verdicts: Vec<bool> = self.rows.iter().filter_map(Row::held).collect();
        all["held"] = if verdicts.is_empty() { Value::Null } else { json!(verdicts.iter().all(|held| *held)) };
        std::fs::create_dir_all(dir)?;
        let path = dir.join(format!("{}.json", self.name));
        std::fs::write(&path, serde_json::to_string_pretty(&all)? + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A figure with as many digits as it deserves.
fn figure(value: &Value) -> String {
    match value.as_f64() {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}

fn ratio_text(row: &Value) -> String {
    let ratio = &row["ratio"];
    let part = |key: &str| ratio[key].as_f64().unwrap_or(0.0);
    // A thousandth is the finest that a ratio to a far slower peer needs.
    let digits = if part("median") < 0.1 { 4 } else { 2 };
    match ratio["median"].as_f64() {
        None => "-".into(),
        Some(median) => {
            format!("{median:.digits$} [{:.digits$}, {:.digits$}] to {}", part("low"), part("high"), ratio["to"].as_str().unwrap_or("?"))
        }
    }
}

fn goal_text(row: &Value) -> String {
    let goal = &row["goal"];
    if let Some(against) = goal["ratio_to"].as_str() {
        format!("<= {}x {against}", goal["at_most"])
    } else if let Some(against) = goal["times_better_than"].as_str() {
        format!(">= {}x better than {against}", goal["at_least"])
    } else if goal["value_at_most"].is_number() {
        format!("<= {}", goal["value_at_most"])
    } else {
        "-".into()
    }
}

/// All results in a directory as one table, and in words what falls short.
///
/// # Errors
/// If a result cannot be read.
pub fn table(dir: &Path) -> Result<String> {
    let mut files: Vec<_> =
        std::fs::read_dir(dir).with_context(|| format!("no results in {}", dir.display()))?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "json"));
    files.sort_by_key(|path| {
        // B2 before B13, and both before SC1.
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let digits = stem.find(|letter: char| letter.is_ascii_digit()).unwrap_or(stem.len());
        (stem[..digits].to_owned(), stem[digits..].parse::<u32>().ok())
    });
    let mut lines = vec![["", "what", "ours", "peers", "floor", "ratio [95 %]", "goal", "held"].map(str::to_owned).to_vec()];
    let mut words = Vec::new();
    for path in files {
        let result: Value = serde_json::from_slice(&std::fs::read(&path)?).with_context(|| format!("in {}", path.display()))?;
        let name = result["name"].as_str().unwrap_or("?").to_owned();
        for row in result["rows"].as_array().into_iter().flatten() {
            let peers = row["peers"].as_object().into_iter().flatten().map(|(name, value)| format!("{name} {}", figure(value)));
            let metric = row["name"].as_str().unwrap_or("?");
            let held = row["held"].as_bool();
            lines.push(vec![
                name.clone(),
                format!("{metric}, {}", row["unit"].as_str().unwrap_or("")),
                figure(&row["ours"]),
                peers.collect::<Vec<_>>().join(", "),
                row["floor"]["value"].as_f64().map_or("-".into(), |_| figure(&row["floor"]["value"])),
                ratio_text(row),
                goal_text(row),
                held.map_or("-", |held| if held { "yes" } else { "NO" }).to_owned(),
            ]);
            let note = row["note"].as_str().unwrap_or_default();
            if held == Some(false) {
                words.push(format!("{name}: {metric} falls short: {} where {} was promised. {note}", shortfall(row), goal_text(row)));
            } else if !note.is_empty() {
                words.push(format!("{name}: {metric}: {note}"));
            }
        }
        if result["noisy"] == json!(true) {
            words.push(format!(
                "{name}: others used {:.0} % of the machine meanwhile: wall times mean little, ratios more",
                result["foreign_share"].as_f64().unwrap_or(0.0) * 100.0
            ));
        }
        words.extend(result["remarks"].as_array().into_iter().flatten().filter_map(|remark| Some(format!("{name}: {}", remark.as_str()?))));
    }
    let widths: Vec<usize> = (0..8).map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(text, "{}", cells.join("  ").trim_end())?;
    }
    for word in words {
        writeln!(text, "\n{word}")?;
    }
    Ok(text)
}

fn shortfall(row: &Value) -> String {
    if row["ratio"].is_null() { figure(&row["ours"]) } else { format!("ratio {}", ratio_text(row)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(contender: &str, round: usize, tree: f64) -> Sample {
        Sample { contender: contender.into(), round, marks: vec![("running", tree)], tree, kernel: 0.0, foreign: 0.0 }
    }

    #[test]
    fn ratios_are_taken_within_a_round_so_that_a_slow_round_does_not_count() {
        let mut samples = Vec::new();
        for round in 0..5 {
            let slow = if round == 3 { 100.0 } else { 1.0 };
            samples.extend([sample("skep", round, slow), sample("ctr x1", round, 2.0 * slow), sample("ctr x1", round, 2.0 * slow)]);
        }
        let row = compared(&samples, ("cpu", "ms"), "ctr", Some(0.6), "runc", &cpu);
        assert_eq!(row.ratio.unwrap(), Estimate { median: 0.5, low: 0.5, high: 0.5 });
        assert_eq!(row.held(), Some(true));
        assert_eq!(row.peers["ctr x1"], 2000.0);
    }

    #[test]
    fn without_our_own_figure_nothing_is_held() {
        let row = compared(&[sample("ctr x1", 0, 1.0)], ("cpu", "ms"), "ctr", Some(9.0), "runc", &cpu);
        assert_eq!(row.held(), None);
        assert_eq!(Row::plain("rss", "MiB", Some(41.0), Some(Goal::Value(40.0))).held(), Some(false));
    }

    #[test]
    fn the_table_says_what_falls_short() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::new("B16", "footprint");
        report.rows.push(Row::plain("rss", "MiB", Some(41.0), Some(Goal::Value(40.0))));
        report.write(dir.path()).unwrap();
        let text = table(dir.path()).unwrap();
        assert!(text.contains("falls short: 41.0 where <= 40.0 was promised"), "{text}");
        let file: Value = serde_json::from_slice(&std::fs::read(dir.path().join("B16.json")).unwrap()).unwrap();
        assert_eq!((&file["held"], &file["ours"]), (&json!(false), &json!(41.0)));
    }
}
