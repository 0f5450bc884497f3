//! `swarmctl explain …`: why something is as it is, in sentences.

use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::output::{self, plain};
use crate::resolve;
use skep_proto::skep::finding::Verdict;
use skep_proto::skep::get_explanation_request::Kind;
use skep_proto::skep::{Finding, GetExplanationRequest, GetPlacementRequest, GetPlacementResponse};
use skep_proto::{ToWire, v1};
use skep_types::ServiceSpec;
use std::fmt::Write;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Why a service runs where it does, or does not
    Service {
        #[arg(value_name = "SERVICE")]
        name: String,
    },
    /// Why a task is where it is, in the state it is in
    Task {
        /// Id, its beginning, or SERVICE.SLOT
        #[arg(value_name = "TASK")]
        name: String,
    },
    /// Why a node has the tasks it has, and gets others or not
    Node {
        /// Host name, id, or `self`
        #[arg(value_name = "NODE")]
        name: String,
    },
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    let (kind, id) = match command {
        Command::Service { name } => (Kind::Service, resolve::service(connection, &name).await?.id),
        Command::Task { name } => (Kind::Task, resolve::task(connection, &name).await?.id),
        Command::Node { name } => (Kind::Node, resolve::node(connection, &name).await?.id),
    };
    let request = GetExplanationRequest { kind: kind as i32, id };
    let answer = connection.explanations().get(request).await.map_err(no_explanations)?.into_inner();
    output::put(&text(&answer.findings))
}

/// `service create --dry-run`. Fails if tasks would wait, so that scripts see it.
pub async fn dry_run(spec: &ServiceSpec, connection: &Connection) -> Result<(), Failure> {
    let spec: v1::ServiceSpec = spec.to_wire();
    let request = GetPlacementRequest { spec: prost::Message::encode_to_vec(&spec) };
    let answer = connection.explanations().get_placement(request).await.map_err(no_explanations)?.into_inner();
    output::put(&placement(&answer))?;
    match answer.unplaced {
        0 => Ok(()),
        1 => Err(Failure::failed("1 task would wait for a node; nothing was created")),
        waiting => Err(Failure::failed(format!("{waiting} tasks would wait for a node; nothing was created"))),
    }
}

/// Managers of the original have no such call.
fn no_explanations(status: tonic::Status) -> Failure {
    match status.code() {
        tonic::Code::Unimplemented => {
            Failure::new(Exit::Failed, "the leading manager cannot explain: it is not one of skepd's, or an older one")
        }
        _ => Failure::from(status),
    }
}

fn placement(answer: &GetPlacementResponse) -> String {
    let mut text = String::new();
    for one in &answer.placed {
        let _ = writeln!(text, "  {}: {} {}", plain(&one.node_name), one.tasks, if one.tasks == 1 { "task" } else { "tasks" });
    }
    let (head, rest) = (if text.is_empty() { "no task would be placed\n" } else { "tasks would go to\n" }, text);
    format!("{head}{rest}{}", self::text(&answer.findings))
}

/// One finding a paragraph: what is wrong begins with `!`, what is to be known with `-`.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.verdict() {
            Verdict::Fine => " ",
            Verdict::Note => "-",
            Verdict::Wrong => "!",
        };
        let _ = writeln!(text, "{mark} {}", plain(&finding.text));
        for group in &finding.nodes {
            let mut names = group.names.iter().map(|name| plain(name).into_owned()).collect::<Vec<_>>().join(", ");
            let more = group.count.saturating_sub(group.names.len() as u64);
            if more > 0 {
                let _ = write!(names, " and {more} more");
            }
            let _ = writeln!(text, "    {names}: {}", plain(&group.reason));
        }
        for cure in &finding.cures {
            let _ = writeln!(text, "    > {}", plain(cure));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::skep::{NodeGroup, PlacedTasks};

    #[test]
    fn what_is_wrong_stands_out_and_nothing_steers_the_terminal() {
        let finding = Finding {
            verdict: Verdict::Wrong as i32,
            text: "2 tasks wait\u{1b}[2J".into(),
            nodes: vec![NodeGroup { reason: "it is drained".into(), count: 12, names: vec!["a".into(), "b".into()] }],
            cures: vec!["make it active".into()],
        };
        let waits = "! 2 tasks wait\\u{1b}[2J\n    a, b and 10 more: it is drained\n    > make it active\n";
        assert_eq!(text(std::slice::from_ref(&finding)), waits);
        let placed = vec![PlacedTasks { node_id: "1".into(), node_name: "n1".into(), tasks: 1 }];
        let answer = GetPlacementResponse { placed, unplaced: 2, findings: vec![finding] };
        assert_eq!(placement(&answer), format!("tasks would go to\n  n1: 1 task\n{waits}"));
        assert_eq!(placement(&GetPlacementResponse::default()), "no task would be placed\n");
    }
}
