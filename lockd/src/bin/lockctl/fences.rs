//! `lockctl fences` and `lockctl breaks`: who is being fenced, and what operators have freed on their own word (L12).

use std::time::Duration;

use anyhow::{Context, bail};
use lockd::ids::SessionId;
use lockd::machine::{
    Answer, BreakRecord, ClientInfo, FenceInfo, FenceMethod, Query, SessionInfo, SessionState, Victim,
    VolumeInfo,
};
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
    let Answer::Clients(clients) = connection.query(Query::Clients)? else { bail!(commands::OTHER_RELEASE) };
    let status: Value =
        serde_json::from_str(&connection.status()?).context("lockd's status is not readable")?;
    let now_ns = commands::now_ns(&connection)?;
    let seen = Seen { volumes, sessions, clients, status, now_ns };
    let lines: Vec<Value> = fences.iter().map(|fence| seen.line(fence)).collect();
    commands::print(common, &Value::Array(lines.clone()), || print_fences(&lines));
    Ok(())
}

/// What is known around the fences.
struct Seen {
    volumes: Vec<VolumeInfo>,
    sessions: Vec<SessionInfo>,
    clients: Vec<ClientInfo>,
    status: Value,
    now_ns: u64,
}

impl Seen {
    fn node_of(&self, session: SessionId) -> String {
        let found = self.sessions.iter().find(|info| info.session == session);
        found.map_or_else(|| format!("session {session}"), |info| info.node.to_string())
    }

    fn line(&self, fence: &FenceInfo) -> Value {
        let volume = self.volumes.iter().find(|info| info.volume == fence.volume);
        let client = |id| self.clients.iter().find(|info| info.client == id);
        let (victim, node, lease_over_ns) = match fence.victim {
            Victim::Session(session) => {
                let info = self.sessions.iter().find(|info| info.session == session);
                let over_ns = info.and_then(|info| match info.state {
                    SessionState::Ended { lease_over_ns, .. } => Some(lease_over_ns),
                    SessionState::Live => None,
                });
                let node = self.node_of(session);
                (format!("{} of node {node}", fence.victim), node, over_ns)
            }
            Victim::Client(id) => {
                let node = client(id).map_or_else(|| "?".to_owned(), |info| info.node.to_string());
                let pid = client(id).map_or(0, |info| info.pid);
                (format!("{id} (process {pid} on node {node}, which is dead)"), node, None)
            }
        };
        let waiting: Vec<String> = fence.waiting.iter().map(|session| self.node_of(*session)).collect();
        let by = volume.map(|info| info.fence);
        json!({
            "volume": volume.map_or_else(|| fence.volume.to_string(), |info| info.name.clone()),
            "victim": victim,
            "node": node,
            "since_s": show::age_s(self.now_ns, fence.since_ns),
            "fence": by.map(|method| method.to_string()),
            "method": fence.method.map(|method| method.to_string()),
            "waiting": waiting,
            "lease_over_in_s": lease_over_ns.map(|over_ns| show::age_s(over_ns, self.now_ns)),
            "tried": self.tried(fence),
            "advice": advice(by, fence, &node, &waiting),
        })
    }

    /// What each node says that it has tried.
    fn tried(&self, fence: &FenceInfo) -> Vec<Value> {
        let (volume, victim) = (fence.volume.to_string(), fence.victim.to_string());
        let nodes = self.status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
        let of_node = |node: &Value| {
            let tried = node["fences"].as_array().cloned().unwrap_or_default();
            let mine = tried.into_iter().find(|line| line["volume"] == volume && line["victim"] == victim);
            mine.map(|mut line| {
                line["node"] = node["node"].clone();
                line
            })
        };
        nodes.iter().filter_map(of_node).collect()
    }
}

/// What to do about a fence that does not come to its end.
fn advice(by: Option<FenceMethod>, fence: &FenceInfo, node: &str, waiting: &[String]) -> String {
    let last = match fence.victim {
        Victim::Session(session) => {
            format!(
                "; if node {node} is off or cut off from the LUN for certain, `lockctl break session/{session} \
                 --confirm-node {node}` frees what it has, on your word"
            )
        }
        Victim::Client(_) => String::new(),
    };
    let what = match (fence.method, by) {
        (Some(_), _) if !waiting.is_empty() => {
            return format!(
                "look at {}: who does not report for as long as a lease is fenced, too",
                waiting.join(", ")
            );
        }
        (Some(_), _) => return "nothing: it is complete in a moment".to_owned(),
        (None, Some(FenceMethod::NbdTarget)) => {
            "start csv-target with its --control and --control-tls, or mend the way to it from one node"
        }
        (None, Some(FenceMethod::ScsiPr)) => {
            "mend the way to the iSCSI targets of the volume's paths from one node, or what they refuse"
        }
        (None, Some(FenceMethod::Agent)) => "mend what the fence agent says, or switch the host off by hand",
        (None, Some(FenceMethod::Lease)) => "wait until lease and grace are over",
        (None, _) => "wait",
    };
    format!("{what}{last}")
}

fn print_fences(lines: &[Value]) {
    if lines.is_empty() {
        println!("nobody is being fenced");
    }
    for line in lines {
        let span = |value: &Value| show::span(value.as_f64().unwrap_or_default());
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        println!(
            "{} is being fenced from volume {} by {} for {}",
            text(&line["victim"]),
            text(&line["volume"]),
            text(&line["fence"]),
            span(&line["since_s"])
        );
        match line["method"].as_str() {
            Some(method) => println!("  {method} has succeeded"),
            None if line["fence"] == "lease" && line["lease_over_in_s"].is_f64() => {
                println!("  lease and grace are over in {}", span(&line["lease_over_in_s"]));
            }
            None => println!("  it has not succeeded yet"),
        }
        let waiting: Vec<String> = line["waiting"].as_array().into_iter().flatten().map(text).collect();
        if !waiting.is_empty() {
            println!("  these have not reported yet that they refuse it: {}", waiting.join(", "));
        }
        for tried in line["tried"].as_array().into_iter().flatten() {
            let now = match (tried["running_s"].is_f64(), tried["next_s"].is_f64()) {
                (true, _) => format!(", under way for {}", span(&tried["running_s"])),
                (false, true) => format!(", again in {}", span(&tried["next_s"])),
                (false, false) => String::new(),
            };
            let (node, what, tries) = (text(&tried["node"]), text(&tried["what"]), &tried["tries"]);
            println!("  tried by node {node}, {tries} times{now}: {what}");
            if let Some(error) = tried["last_error"].as_str() {
                println!("    the last time: {error}");
            }
        }
        println!("  what to do: {}", text(&line["advice"]));
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
