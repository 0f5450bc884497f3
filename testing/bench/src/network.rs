//! B8 to B11 and B15: what netlb's `net_bench` and `dns_bench` measured, beside the ways that networks are made of.
//!
//! All are times, so that less is better and a ratio to a peer at most something: 0.95 of a peer's throughput is 1.053 of its time.

use crate::report::{Goal, Report, Row, SEED};
use crate::stats::{estimate, exponent, median};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// A benchmark, the example of netlb that measures it, and how that calls it.
const KINDS: [(&str, &str, &str, &str); 5] = [
    ("B8", "net_bench", "churn", "endpoint-churn: one of a service's four tasks replaced, netlb and kernel"),
    ("B9", "net_bench", "connect", "vip-connect: from task to task of one host"),
    ("B10", "net_bench", "overlay", "overlay-throughput: from task to task of two hosts"),
    ("B11", "net_bench", "ingress", "ingress: a client's requests to a port of one host, the task on another"),
    ("B15", "dns_bench", "json", "dns: a task's questions for one of 10,000 names, 32 under way at a time"),
];

/// What a metric that begins so is to keep to.
const GOALS: [(&str, Goal); 13] = [
    ("a task replaced among 10000 services, CPU", Goal::Value(2.0)),
    ("loading 10000 services, wall", Goal::Value(1_500.0)),
    ("connect, 10000 services, p50", Goal::Ratio { against: "direct", at_most: 1.15 }),
    ("a GiB, 1 TCP streams, wall", Goal::Ratio { against: "bridge by hand", at_most: 1.0 / 0.95 }),
    ("a GiB, 8 TCP streams, wall", Goal::Ratio { against: "bridge by hand", at_most: 1.0 / 0.95 }),
    ("request, keep-alive, p50", Goal::Ratio { against: "direct", at_most: 1.0 / 0.9 }),
    ("new connection, p50", Goal::Ratio { against: "direct", at_most: 1.0 / 0.75 }),
    ("HTTP, kept connection, a request", Goal::Ratio { against: "direct", at_most: 1.0 / 0.9 }),
    ("HTTP, new connection, a request", Goal::Ratio { against: "direct", at_most: 1.0 / 0.75 }),
    ("source kept, HTTP, kept connection, CPU", Goal::Ratio { against: "masqueraded", at_most: 1.03 }),
    ("source kept, HTTP, new connection, CPU", Goal::Ratio { against: "masqueraded", at_most: 1.03 }),
    ("a question under load, wall", Goal::Ratio { against: "udp echo", at_most: 1.0 / 0.7 }),
    ("p99 with the resolver dead", Goal::Ratio { against: "no foreign question", at_most: 1.25 }),
];

/// By metric, with its unit: by contender: a round's figures.
type Figures = BTreeMap<(String, String), BTreeMap<String, BTreeMap<u64, Vec<f64>>>>;

fn parse(text: &str) -> Result<Figures> {
    let mut all = Figures::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let row: Value = serde_json::from_str(line).with_context(|| format!("in {line}"))?;
        let text = |key: &str| row[key].as_str().map(str::to_owned).with_context(|| format!("{key} is missing in {line}"));
        let round = row["round"].as_u64().with_context(|| format!("round is missing in {line}"))?;
        let value = row["value"].as_f64().with_context(|| format!("value is missing in {line}"))?;
        let by_round = all.entry((text("metric")?, text("unit")?)).or_default().entry(text("who")?).or_default();
        by_round.entry(round).or_default().push(value);
    }
    ensure!(!all.is_empty(), "no figure was printed");
    Ok(all)
}

/// # Errors
/// If the example was not built or fails.
pub fn measure(name: &str, rounds: usize) -> Result<Report> {
    let (name, example, what, title) =
        KINDS.into_iter().find(|(known, ..)| *known == name).with_context(|| format!("{name} is none of these"))?;
    let mut report = Report::new(name, title);
    report.rounds = rounds;
    let program = skep_kit::binary(&format!("examples/{example}"));
    let program = program.with_context(|| format!("cargo build --release -p skep-netlb --example {example}"))?;
    let rounds = rounds.to_string();
    let text = skep_kit::run("unshare", &["-n", "-m", "--", &program.to_string_lossy(), what, &rounds])?.success()?;
    report.rows = rows(&parse(&text)?)?;
    if example == "net_bench" {
        report.remarks.push("the CPU time of clients and servers is in the figures".into());
    }
    if name == "B11" {
        report.remarks.push("every answer named the client's own address, by our way and by the direct one".into());
        if !report.rows.iter().any(|row| row.metric.starts_with("HTTP")) {
            report.remarks.push("without nginx and haproxy: PEER_WEB names no directory that scripts/web-peers filled".into());
        }
    }
    Ok(report)
}

fn rows(figures: &Figures) -> Result<Vec<Row>> {
    let unit_of = |unit: &str| match unit {
        "ms" => Ok("ms"),
        "us" => Ok("us"),
        "s" => Ok("s"),
        other => anyhow::bail!("{other} is no unit of these"),
    };
    let mut rows = Vec::new();
    for ((metric, unit), who) in figures {
        let goal = GOALS.iter().find(|(prefix, _)| metric.starts_with(prefix)).map(|(_, goal)| *goal);
        let all = |who: &BTreeMap<u64, Vec<f64>>| median(&who.values().flatten().copied().collect::<Vec<f64>>());
        let mut row = Row::plain(metric.clone(), unit_of(unit)?, who.get("skep").and_then(all), goal);
        for (name, rounds) in who.iter().filter(|(name, _)| *name != "skep") {
            if let Some(value) = all(rounds) {
                row = row.peer(name, value);
            }
        }
        let against = ["bridge by hand", "direct", "masqueraded", "udp echo", "no foreign question"]
            .into_iter()
            .find_map(|name| Some((name, who.get(name)?)));
        if let (Some((name, theirs)), Some(ours)) = (against, who.get("skep")) {
            let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
            let ratios: Vec<f64> = ours.iter().filter_map(|(round, ours)| Some(mean(ours) / mean(theirs.get(round)?))).collect();
            row.ratio = estimate(&ratios, SEED);
            row.against = Some(name.to_owned());
        }
        rows.push(row);
    }
    let replaced = |unit: &str| -> Vec<(f64, f64)> {
        let of = |row: &Row| {
            let size = row.metric.strip_prefix("a task replaced among ")?.strip_suffix(&format!(" services, {unit}"))?;
            Some((size.parse().ok()?, row.ours?))
        };
        rows.iter().filter_map(of).collect()
    };
    if let Some(growth) = exponent(&replaced("CPU")) {
        rows.push(Row::plain("growth of a change with services, CPU", "exponent", Some(growth), Some(Goal::Value(0.1))));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(round: u64, metric: &str, who: &str, value: f64) -> String {
        format!(r#"{{"bench":"B","round":{round},"metric":"{metric}","unit":"ms","who":"{who}","value":{value}}}"#)
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds() {
        let metric = "connect, 10000 services, p50";
        let values =
            [(0, "skep", 20.0), (0, "direct", 10.0), (1, "skep", 11.0), (1, "direct", 10.0), (2, "skep", 10.5), (2, "direct", 10.0)];
        let text: Vec<String> = values.iter().map(|(round, who, value)| line(*round, metric, who, *value)).collect();
        let rows = rows(&parse(&text.join("\n")).unwrap()).unwrap();
        assert!((rows[0].ratio.unwrap().median - 1.1).abs() < 1e-9);
        assert_eq!((rows[0].held(), rows[0].against.as_deref()), (Some(true), Some("direct")));
    }

    #[test]
    fn growth_is_fitted_over_the_sizes() {
        let of = |size: u32, value: f64| line(0, &format!("a task replaced among {size} services, CPU"), "skep", value);
        let flat = [of(10, 0.3), of(1_000, 0.3), of(10_000, 0.3)].join("\n");
        let growth = |text: &str| rows(&parse(text).unwrap()).unwrap().into_iter().find(|row| row.metric.starts_with("growth")).unwrap();
        assert_eq!(growth(&flat).held(), Some(true));
        let steep = [of(10, 0.1), of(1_000, 1.0), of(10_000, 3.0)].join("\n");
        assert_eq!(growth(&steep).held(), Some(false));
    }

    #[test]
    fn no_figure_is_an_error() {
        assert!(parse("warming up\n").is_err());
    }
}
