//! The commands.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use lockd::client::{ClientConfig, Connection, Deaf, LockClient};
use lockd::cluster::{Cluster, tls};
use lockd::ids::{NodeName, ResourceId, SessionId};
use lockd::local::message::VotersChange;
use lockd::machine::{Answer, BreakTarget, ClientKind, Operation, Query, Reply};
use serde_json::{Value, json};

use crate::{Command, Common, Voters, fences, holdings, names, quorum, show};

/// An answer that does not belong to the question.
pub(crate) const OTHER_RELEASE: &str = "lockd's answer is of another release";

pub(crate) fn run(common: &Common, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { file } => init(common, &file),
        Command::Status => status(common),
        Command::Ls => list(common),
        Command::Show { path } => show_one(common, &path),
        Command::Acquire { paths } => {
            quorum::needed(common, |lockd| holdings::acquire(common, lockd, &paths))
        }
        Command::Release { paths } => {
            quorum::needed(common, |lockd| holdings::release(common, lockd, &paths))
        }
        Command::Transfer { paths, to, with_locks, epoch } => quorum::needed(common, |lockd| {
            let resources = names::resources(&paths, common.patience())?;
            holdings::transfer(common, lockd, resources, &to, with_locks, epoch)
        }),
        Command::Adopt { cookie, owner, drop } => {
            quorum::needed(common, |lockd| holdings::adopt(common, lockd, cookie, owner, drop))
        }
        Command::Coordinator { volume, to } => {
            quorum::needed(common, |lockd| coordinator(common, lockd, &volume, &to))
        }
        Command::Voters { change } => voters(common, change),
        Command::ResolvePaths => names::resolve_paths(),
        Command::Fences => fences::list(common),
        Command::Breaks => fences::breaks(common),
        Command::Break { path, confirm_node, operator } => break_one(common, &path, confirm_node, operator),
    }
}

pub(crate) fn print(common: &Common, document: &Value, text: impl FnOnce()) {
    if common.json {
        println!("{document}");
    } else {
        text();
    }
}

fn init(common: &Common, file: &std::path::Path) -> anyhow::Result<()> {
    let cluster = Cluster::read(file)?;
    let report = tls::init(&cluster)?;
    let made = |made: tls::Made| if made == tls::Made::New { "made" } else { "kept" };
    let nodes: Vec<Value> = report
        .nodes
        .iter()
        .map(|(node, what)| json!({ "node": node.as_str(), "certificate": made(*what) }))
        .collect();
    let directory = report.directory.display().to_string();
    let document = json!({
        "directory": directory,
        "authority": made(report.authority),
        "nodes": nodes,
        "target": report.target.map(made),
    });
    print(common, &document, || {
        println!("{directory}: authority {}", made(report.authority));
        for (node, what) in &report.nodes {
            println!("  certificate of {node}: {}", made(*what));
        }
        if let Some(what) = report.target {
            println!("  certificate of the targets: {}", made(what));
            println!("Give each csv-target ca.pem, target.pem and target.key: --control-tls DIR.");
        }
        println!("Give each node ca.pem and its own NODE.pem and NODE.key; keep ca.key away from them.");
    });
    Ok(())
}

fn status(common: &Common) -> anyhow::Result<()> {
    let text = common.connect()?.status()?;
    let document: Value = serde_json::from_str(&text).context("lockd's status is not readable")?;
    print(common, &document, || {
        show::print_status(&document);
        if let Some(advice) = quorum::advice(&document) {
            println!("\n{advice}");
        }
    });
    match document["problem"].as_str() {
        Some(problem) => bail!("no quorum: {}", show::without_heading(problem)),
        None => Ok(()),
    }
}

/// The time of the cluster, from which ages are counted.
pub(crate) fn now_ns(connection: &Connection) -> anyhow::Result<u64> {
    match connection.query(Query::Status)? {
        Answer::Status { time_ns, .. } => Ok(time_ns),
        _ => bail!(OTHER_RELEASE),
    }
}

fn list(common: &Common) -> anyhow::Result<()> {
    let connection = common.connect()?;
    let resources = connection.resources()?;
    let now_ns = now_ns(&connection)?;
    let lines: Vec<Value> = resources.iter().map(|info| show::resource_json(info, now_ns)).collect();
    print(common, &Value::Array(lines), || show::print_list(&resources, now_ns));
    Ok(())
}

fn show_one(common: &Common, path: &str) -> anyhow::Result<()> {
    let resource = names::resource(path, common.patience())?;
    let connection = common.connect()?;
    let Answer::Resource(info) = connection.query(Query::Resource(resource.clone()))? else {
        bail!(OTHER_RELEASE);
    };
    let Answer::Locks(locks) = connection.query(Query::Locks(resource))? else {
        bail!(OTHER_RELEASE);
    };
    let now_ns = now_ns(&connection)?;
    let mut document = show::resource_json(&info, now_ns);
    document["file_locks"] = locks.iter().map(show::lock_json).collect();
    print(common, &document, || show::print_resource(&info, &locks, now_ns));
    Ok(())
}

fn coordinator(common: &Common, connection: &Connection, volume: &str, to: &NodeName) -> anyhow::Result<()> {
    let Answer::Volumes(volumes) = connection.query(Query::Volumes)? else {
        bail!(OTHER_RELEASE);
    };
    let found = volumes.into_iter().find(|info| info.name == volume);
    let found = found.with_context(|| format!("no volume {volume} is registered; mount it first"))?;
    holdings::transfer(common, connection, vec![ResourceId::Coordinator(found.volume)], to, false, None)
}

fn voters(common: &Common, change: Option<Voters>) -> anyhow::Result<()> {
    let connection = common.connect()?;
    let change = match change {
        Some(Voters::Add { voter }) => VotersChange::Add(voter),
        Some(Voters::Remove { voter }) => {
            let there = known_voters(&serde_json::from_str(&connection.status()?)?);
            let is_there = |voters: &Vec<Value>| voters.iter().any(|known| known["node"] == voter.as_str());
            if there.as_array().is_some_and(|voters| !is_there(voters)) {
                bail!("node {voter} has no vote; `lockctl voters` lists those that have");
            }
            VotersChange::Remove(voter)
        }
        Some(Voters::Rejoin { voter }) => VotersChange::Rejoin(voter),
        None => return list_voters(common, &connection),
    };
    connection.change_voters(change)?;
    list_voters(common, &connection)
}

/// The voters as the leader sees them, or any voter when nobody leads.
pub(crate) fn known_voters(status: &Value) -> Value {
    let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let leader = nodes.iter().find(|node| node["node"] == status["leader"]);
    let best = leader.or_else(|| nodes.iter().find(|node| node["voter"].is_object()));
    best.map_or(Value::Null, |node| node["voter"]["voters"].clone())
}

fn list_voters(common: &Common, connection: &Connection) -> anyhow::Result<()> {
    let document: Value = serde_json::from_str(&connection.status()?)?;
    let voters = known_voters(&document);
    print(common, &voters, || {
        show::print_voters(&voters);
        if let Some(advice) = quorum::advice(&document) {
            println!("\n{advice}");
        }
    });
    match document["problem"].as_str() {
        Some(problem) => bail!("no quorum: {}", show::without_heading(problem)),
        None => Ok(()),
    }
}

fn break_one(common: &Common, path: &str, confirmed: Option<String>, operator: String) -> anyhow::Result<()> {
    let session = path.strip_prefix("session/").map(|number| number.trim_start_matches('s').parse());
    let target = match session {
        Some(number) => BreakTarget::Session(SessionId(number.context("session/NUMBER")?)),
        None => BreakTarget::Resource(names::resource(path, common.patience())?),
    };
    let patience = Some(common.patience());
    let client = common.reach(|run_dir, wait| {
        let config = ClientConfig {
            run_dir: run_dir.clone(),
            kind: ClientKind::Tool,
            wait: Some(wait.max(common.patience())),
            patience,
            listener: std::sync::Arc::new(Deaf),
        };
        LockClient::connect(config)
    })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let operation = Operation::Break {
        target: target.clone(),
        confirmed_node: confirmed.unwrap_or_default(),
        operator,
        wall_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
    };
    let reply = client.operate(client.client(), operation);
    if let Err(error) = client.leave(client.client()) {
        // It goes with this process.
        eprintln!("lockctl: {error}");
    }
    let Reply::Broken { freed } = reply? else { bail!(OTHER_RELEASE) };
    let document = json!({ "target": target.to_string(), "freed": freed });
    print(common, &document, || println!("{target}: {freed} holdings are free"));
    Ok(())
}
