//! What needs a majority of the voters, and what is said where there is none.

use anyhow::anyhow;
use lockd::client::Connection;
use lockd::machine::Query;
use serde_json::Value;

use crate::Common;
use crate::commands::known_voters;
use crate::show::{span, without_heading};

const NOT_ASKED: &str = "nothing was asked for";
const ASKED: &str = "what was asked for may have been done, or be done later";

/// Does `change` where there is a quorum. Without one nobody is asked: a mount would wait for it longer than a person does.
pub(crate) fn needed(
    common: &Common,
    change: impl FnOnce(&Connection) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let connection = common.connect()?;
    if let Err(error) = connection.query(Query::Status) {
        return Err(match missing(&connection) {
            Some(why) => anyhow!("{why}; {NOT_ASKED}"),
            None => error.into(),
        });
    }
    change(&connection).map_err(|error| match missing(&connection) {
        Some(why) => error.context(format!("{why}; {ASKED}")),
        None => error,
    })
}

/// Why there is no quorum, if there is none.
fn missing(connection: &Connection) -> Option<String> {
    let document = connection.status().ok()?;
    describe(&serde_json::from_str(&document).ok()?)
}

/// How many voters there are, and which of them do not answer, as far as the asked lockd knows.
fn silent_voters(status: &Value) -> (usize, Vec<(String, Option<f64>)>) {
    let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let known = known_voters(status);
    let voters: Vec<&Value> =
        known.as_array().into_iter().flatten().filter(|known| known["voter"] == true).collect();
    let silent = voters
        .iter()
        .filter_map(|voter| nodes.iter().find(|node| node["node"] == voter["node"]))
        .filter(|node| node["reachable"] == false)
        .map(|node| (node["node"].as_str().unwrap_or("?").to_owned(), node["last_contact_s"].as_f64()));
    (voters.len(), silent.collect())
}

/// Why there is no quorum, and what to do.
fn describe(status: &Value) -> Option<String> {
    let problem = status["problem"].as_str()?;
    let (voters, silent) = silent_voters(status);
    let silent: Vec<String> = silent
        .into_iter()
        .map(|(name, last_contact)| match last_contact {
            Some(ago) => format!("{name} (last heard of {} ago)", span(ago)),
            None => format!("{name} (never heard of)"),
        })
        .collect();
    let asked = status["asked"].as_str().unwrap_or("?");
    let why = match silent.len() {
        0 => without_heading(problem).to_owned(),
        count => format!("{count} of {voters} voters do not answer node {asked}: {}", silent.join(", ")),
    };
    Some(format!(
        "no quorum: {why}; nothing changes hands until a majority of the voters answers: start lockd on more of them, or \
         mend the network between them (`lockctl status` shows every node)"
    ))
}

/// What may be done about voters that do not answer and are gone for good, and what it costs; none if all answer.
pub(crate) fn advice(status: &Value) -> Option<String> {
    let (voters, silent) = silent_voters(status);
    if silent.is_empty() {
        return None;
    }
    let names: Vec<&str> = silent.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(", ");
    let majority = voters / 2 + 1;
    let there = voters - silent.len();
    if there >= majority {
        let spare = there - majority;
        return Some(format!(
            "{names}: no answer; {spare} more of the {voters} voters may be lost before nothing changes hands. If gone for \
             good, give the vote to a node that is there: voter = true in the cluster file, restart its lockd, `lockctl \
             voters add` it, then `lockctl voters remove` the other. Nothing is lost by it"
        ));
    }
    Some(format!(
        "{names}: no answer, and without {} more of the {voters} voters nothing changes hands and leases run out. If they \
         are gone for good with their directories, the control plane is begun anew, and you answer for it: make sure that \
         their machines are off, for nothing else keeps them from the volumes; unmount everywhere and stop every lockd; \
         name as voters, 1, 3 or 5, nodes that are there; move the `voter` folder below --data away on each; start. It \
         costs who held and had locked what, which programs have to begin anew, and the log of `lockctl breaks`; files \
         stay as they were synced",
        majority - there
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(nodes: Value) -> Value {
        json!({ "asked": "n1", "problem": "no quorum: nobody leads", "leader": null, "nodes": nodes })
    }

    #[test]
    fn the_voters_that_do_not_answer_are_named() {
        let voters = json!([
            { "node": "n1", "voter": true },
            { "node": "n2", "voter": true },
            { "node": "n3", "voter": true },
            { "node": "n4", "voter": false },
        ]);
        let status = status(json!([
            { "node": "n1", "reachable": true, "voter": { "voters": voters } },
            { "node": "n2", "reachable": false, "last_contact_s": 12.0 },
            { "node": "n3", "reachable": false, "last_contact_s": null },
            { "node": "n4", "reachable": false, "last_contact_s": 1.0 },
        ]));
        let said = describe(&status).expect("there is no quorum");
        let silent = "no quorum: 2 of 3 voters do not answer node n1: n2 (last heard of 12.0 s ago), n3 (never heard of);";
        assert!(said.starts_with(silent) && said.contains("start lockd"), "{said}");
        assert!(!said.contains("n4"), "{said}");
    }

    #[test]
    fn what_may_be_done_about_voters_that_are_gone_and_what_it_costs() {
        let voters = json!([
            { "node": "n1", "voter": true },
            { "node": "n2", "voter": true },
            { "node": "n3", "voter": true },
        ]);
        let there = json!({ "node": "n1", "reachable": true, "voter": { "voters": voters } });
        let node = |name: &str, reachable: bool| json!({ "node": name, "reachable": reachable });
        let lost = |second, third| {
            let nodes = json!([there.clone(), node("n2", second), node("n3", third)]);
            advice(&json!({ "asked": "n1", "leader": "n1", "nodes": nodes }))
        };
        assert_eq!(lost(true, true), None);
        let one = lost(true, false).expect("n3 is away");
        assert!(
            one.starts_with("n3: no answer; 0 more of the 3 voters") && one.contains("voters remove"),
            "{one}"
        );
        let two = lost(false, false).expect("most are away");
        assert!(two.starts_with("n2, n3: no answer, and without 1 more of the 3 voters"), "{two}");
        assert!(two.contains("It costs who held") && two.contains("machines are off"), "{two}");
    }

    #[test]
    fn who_knows_no_voters_tells_what_was_met() {
        let said = describe(&status(json!([{ "node": "n1", "reachable": true, "voter": null }])));
        assert!(said.expect("there is no quorum").starts_with("no quorum: nobody leads;"));
        assert_eq!(describe(&json!({ "problem": null, "nodes": [] })), None);
    }
}
