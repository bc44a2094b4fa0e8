//! The commands.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use lockd::client::{ClientConfig, Connection, Deaf, HolderReply, HolderRequest, LockClient};
use lockd::cluster::{Cluster, tls};
use lockd::ids::{ClientId, NodeName, ResourceId, SessionId};
use lockd::local::message::{Recipient, VotersChange};
use lockd::machine::{Answer, BreakTarget, ClientKind, Operation, Query, Reply};
use serde_json::{Value, json};

use crate::{Command, Common, Voters, fences, names, show};

/// An answer that does not belong to the question.
pub(crate) const OTHER_RELEASE: &str = "lockd's answer is of another release";
/// How many resources are looked up one by one; more are looked up in the list of all.
const ONE_BY_ONE: usize = 16;

pub(crate) fn run(common: &Common, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { file } => init(common, &file),
        Command::Status => status(common),
        Command::Ls => list(common),
        Command::Show { path } => show_one(common, &path),
        Command::Acquire { paths } => acquire(common, &paths),
        Command::Release { paths } => release(common, &paths),
        Command::Transfer { paths, to } => transfer(common, &names::resources(&paths)?, &to),
        Command::Coordinator { volume, to } => coordinator(common, &volume, &to),
        Command::Voters { change } => voters(common, change),
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
    let document = json!({ "directory": directory, "authority": made(report.authority), "nodes": nodes });
    print(common, &document, || {
        println!("{directory}: authority {}", made(report.authority));
        for (node, what) in &report.nodes {
            println!("  certificate of {node}: {}", made(*what));
        }
        println!("Give each node ca.pem and its own NODE.pem and NODE.key; keep ca.key away from them.");
    });
    Ok(())
}

fn status(common: &Common) -> anyhow::Result<()> {
    let text = common.connect()?.status()?;
    let document: Value = serde_json::from_str(&text).context("lockd's status is not readable")?;
    print(common, &document, || show::print_status(&document));
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
    let resource = names::resource(path)?;
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

/// The epoch and the pause of what a holder has done.
fn done(reply: HolderReply) -> anyhow::Result<(Option<u64>, u64)> {
    match reply {
        HolderReply::Done { epoch, pause_ns } => Ok((epoch.map(|epoch| epoch.0), pause_ns)),
        HolderReply::Refused(why) => Err(anyhow!(why)),
        HolderReply::Document(_) => bail!("the holder's answer is of another release"),
    }
}

/// The node whose lockd is asked.
fn asked_node(connection: &Connection) -> anyhow::Result<NodeName> {
    let document: Value = serde_json::from_str(&connection.status()?)?;
    let node = document["asked"].as_str().context("lockd does not say which node it is")?;
    Ok(node.parse()?)
}

fn acquire(common: &Common, paths: &[String]) -> anyhow::Result<()> {
    let resources = names::resources(paths)?;
    let connection = common.connect()?;
    let node = match &common.node {
        Some(node) => node.clone(),
        None => asked_node(&connection)?,
    };
    let mut lines = Vec::new();
    for resource in resources {
        let to = Recipient::Node { node: node.clone(), resource: resource.clone() };
        let reply = connection.ask_holder(to, &HolderRequest::Acquire(vec![resource.clone()]))?;
        let (epoch, _) = done(reply).with_context(|| resource.to_string())?;
        lines.push(json!({ "resource": resource.to_string(), "node": node.as_str(), "epoch": epoch }));
    }
    print(common, &Value::Array(lines.clone()), || {
        for line in &lines {
            println!("{} is held by node {node}", line["resource"].as_str().unwrap_or_default());
        }
    });
    Ok(())
}

fn release(common: &Common, paths: &[String]) -> anyhow::Result<()> {
    let resources = names::resources(paths)?;
    let connection = common.connect()?;
    let mut lines = Vec::new();
    for resource in resources {
        let to = Recipient::Holder(resource.clone());
        let reply = connection.ask_holder(to, &HolderRequest::Release(vec![resource.clone()]))?;
        done(reply).with_context(|| resource.to_string())?;
        lines.push(json!({ "resource": resource.to_string() }));
    }
    print(common, &Value::Array(lines.clone()), || {
        for line in &lines {
            println!("{} is released", line["resource"].as_str().unwrap_or_default());
        }
    });
    Ok(())
}

/// Who holds each of these.
fn holders(
    connection: &Connection,
    resources: &[ResourceId],
) -> anyhow::Result<BTreeMap<ClientId, Vec<ResourceId>>> {
    let mut by_holder: BTreeMap<ClientId, Vec<ResourceId>> = BTreeMap::new();
    let mut put = |resource: &ResourceId, holder: Option<ClientId>| match holder {
        Some(holder) => {
            by_holder.entry(holder).or_default().push(resource.clone());
            Ok(())
        }
        None => Err(anyhow!("{resource} is held by nobody; acquire it where it is wanted")),
    };
    if resources.len() <= ONE_BY_ONE {
        for resource in resources {
            let Answer::Resource(info) = connection.query(Query::Resource(resource.clone()))? else {
                bail!(OTHER_RELEASE);
            };
            put(resource, info.holders.first().map(|holder| holder.client))?;
        }
    } else {
        let all = connection.resources()?.into_iter();
        let all: BTreeMap<_, _> = all.map(|info| (info.resource, info.holders)).collect();
        for resource in resources {
            let holder = all.get(resource).and_then(|holders| holders.first()).map(|holder| holder.client);
            put(resource, holder)?;
        }
    }
    Ok(by_holder)
}

fn transfer(common: &Common, resources: &[ResourceId], to: &NodeName) -> anyhow::Result<()> {
    let connection = common.connect()?;
    let mut lines = Vec::new();
    let by_holder = holders(&connection, resources)?;
    if by_holder.len() > 1 {
        bail!(
            "these are held by {} programs; a set is handed over by one: name each holder's apart",
            by_holder.len()
        );
    }
    for (holder, resources) in by_holder {
        let count = resources.len();
        let request = HolderRequest::Transfer { resources, to: to.clone() };
        let (epoch, pause_ns) = done(connection.ask_holder(Recipient::Client(holder), &request)?)?;
        let pause_s = std::time::Duration::from_nanos(pause_ns).as_secs_f64();
        lines.push(json!({ "count": count, "to": to.as_str(), "epoch": epoch, "pause_s": pause_s }));
    }
    let document = Value::Array(lines.clone());
    print(common, &document, || {
        for line in &lines {
            let pause = show::span(line["pause_s"].as_f64().unwrap_or_default());
            println!("{} handed over to node {to}, pause {pause}", line["count"]);
        }
    });
    Ok(())
}

fn coordinator(common: &Common, volume: &str, to: &NodeName) -> anyhow::Result<()> {
    let connection = common.connect()?;
    let Answer::Volumes(volumes) = connection.query(Query::Volumes)? else {
        bail!(OTHER_RELEASE);
    };
    let found = volumes.into_iter().find(|info| info.name == volume);
    let found = found.with_context(|| format!("no volume {volume} is registered; mount it first"))?;
    transfer(common, &[ResourceId::Coordinator(found.volume)], to)
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
fn known_voters(status: &Value) -> Value {
    let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let leader = nodes.iter().find(|node| node["node"] == status["leader"]);
    let best = leader.or_else(|| nodes.iter().find(|node| node["voter"].is_object()));
    best.map_or(Value::Null, |node| node["voter"]["voters"].clone())
}

fn list_voters(common: &Common, connection: &Connection) -> anyhow::Result<()> {
    let document: Value = serde_json::from_str(&connection.status()?)?;
    let voters = known_voters(&document);
    print(common, &voters, || show::print_voters(&voters));
    match document["problem"].as_str() {
        Some(problem) => bail!("no quorum: {}", show::without_heading(problem)),
        None => Ok(()),
    }
}

fn break_one(common: &Common, path: &str, confirmed: Option<String>, operator: String) -> anyhow::Result<()> {
    let session = path.strip_prefix("session/").map(|number| number.trim_start_matches('s').parse());
    let target = match session {
        Some(number) => BreakTarget::Session(SessionId(number.context("session/NUMBER")?)),
        None => BreakTarget::Resource(names::resource(path)?),
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
