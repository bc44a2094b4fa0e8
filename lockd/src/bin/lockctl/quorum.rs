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

/// The voters that do not answer, as far as the asked lockd knows, and what to do.
fn describe(status: &Value) -> Option<String> {
    let problem = status["problem"].as_str()?;
    let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let known = known_voters(status);
    let voters: Vec<&Value> =
        known.as_array().into_iter().flatten().filter(|known| known["voter"] == true).collect();
    let silent: Vec<String> = voters
        .iter()
        .filter_map(|voter| nodes.iter().find(|node| node["node"] == voter["node"]))
        .filter(|node| node["reachable"] == false)
        .map(|node| {
            let name = node["node"].as_str().unwrap_or("?");
            match node["last_contact_s"].as_f64() {
                Some(ago) => format!("{name} (last heard of {} ago)", span(ago)),
                None => format!("{name} (never heard of)"),
            }
        })
        .collect();
    let asked = status["asked"].as_str().unwrap_or("?");
    let why = match silent.len() {
        0 => without_heading(problem).to_owned(),
        count => {
            format!("{count} of {} voters do not answer node {asked}: {}", voters.len(), silent.join(", "))
        }
    };
    Some(format!(
        "no quorum: {why}; nothing changes hands until a majority of the voters answers: start lockd on more of them, or \
         mend the network between them (`lockctl status` shows every node)"
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
    fn who_knows_no_voters_tells_what_was_met() {
        let said = describe(&status(json!([{ "node": "n1", "reachable": true, "voter": null }])));
        assert!(said.expect("there is no quorum").starts_with("no quorum: nobody leads;"));
        assert_eq!(describe(&json!({ "problem": null, "nodes": [] })), None);
    }
}
