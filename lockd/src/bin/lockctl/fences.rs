//! `lockctl fences` and `lockctl breaks`: who is being fenced, and what operators have freed on their own word (L12).

use std::time::Duration;

use anyhow::bail;
use lockd::machine::{Answer, BreakRecord, FenceInfo, Query, Victim};
use serde_json::{Value, json};

use crate::{Common, commands, show};

/// The fences that are not complete.
pub(crate) fn list(common: &Common) -> anyhow::Result<()> {
    let connection = common.connect()?;
    let Answer::Fences(fences) = connection.query(Query::Fences)? else { bail!(commands::OTHER_RELEASE) };
    let Answer::Volumes(volumes) = connection.query(Query::Volumes)? else { bail!(commands::OTHER_RELEASE) };
    let Answer::Sessions(sessions) = connection.query(Query::Sessions)? else {
        bail!(commands::OTHER_RELEASE)
    };
    let now_ns = commands::now_ns(&connection)?;
    let node_of = |session| {
        let found = sessions.iter().find(|info| info.session == session);
        found.map_or_else(|| format!("session {session}"), |info| info.node.to_string())
    };
    let line = |fence: &FenceInfo| {
        let volume = volumes.iter().find(|info| info.volume == fence.volume);
        let victim = match fence.victim {
            Victim::Session(session) => format!("{} of node {}", fence.victim, node_of(session)),
            Victim::Client(_) => fence.victim.to_string(),
        };
        let waiting: Vec<String> = fence.waiting.iter().map(|session| node_of(*session)).collect();
        json!({
            "volume": volume.map_or_else(|| fence.volume.to_string(), |info| info.name.clone()),
            "victim": victim,
            "since_s": show::age_s(now_ns, fence.since_ns),
            "method": fence.method.map(|method| method.to_string()),
            "waiting": waiting,
        })
    };
    let lines: Vec<Value> = fences.iter().map(line).collect();
    commands::print(common, &Value::Array(lines.clone()), || print_fences(&lines));
    Ok(())
}

fn print_fences(lines: &[Value]) {
    if lines.is_empty() {
        println!("nobody is being fenced");
    }
    for line in lines {
        let since = show::span(line["since_s"].as_f64().unwrap_or_default());
        let text = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
        let waits = match (line["method"].as_str(), line["waiting"].as_array()) {
            (None, _) => {
                "the volume's fence has not succeeded yet (with `lease`: lease + grace are waited for)"
                    .to_owned()
            }
            (Some(method), Some(waiting)) if !waiting.is_empty() => {
                let names: Vec<&str> = waiting.iter().filter_map(Value::as_str).collect();
                format!(
                    "{method} has succeeded; these have not reported yet that they refuse it: {}",
                    names.join(", ")
                )
            }
            (Some(method), _) => format!("{method} has succeeded"),
        };
        println!("{} is being fenced from volume {} for {since}: {waits}", text("victim"), text("volume"));
    }
}

/// The log of what was freed by `lockctl break`.
pub(crate) fn breaks(common: &Common) -> anyhow::Result<()> {
    let connection = common.connect()?;
    let Answer::Breaks(records) = connection.query(Query::Breaks)? else { bail!(commands::OTHER_RELEASE) };
    let now_ns = commands::now_ns(&connection)?;
    let line = |record: &BreakRecord| {
        json!({
            "ago_s": show::age_s(now_ns, record.time_ns),
            "wall_s": Duration::from_nanos(u64::try_from(record.wall_ns).unwrap_or(0)).as_secs(),
            "operator": record.operator,
            "target": record.target.to_string(),
            "node": record.node.as_str(),
            "session": record.session.0,
            "freed": record.freed,
        })
    };
    let lines: Vec<Value> = records.iter().map(line).collect();
    commands::print(common, &Value::Array(lines), || {
        if records.is_empty() {
            println!("nothing was ever broken");
        }
        for record in &records {
            let ago = show::span(show::age_s(now_ns, record.time_ns));
            let BreakRecord { operator, target, node, session, freed, .. } = record;
            println!(
                "{ago} ago {operator} broke {target}, confirming that node {node} (session {session}) is off: {freed} freed"
            );
        }
    });
    Ok(())
}
