//! What changes hands: asked of the programs that hold it, or are to.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use lockd::client::{Connection, HolderReply, HolderRequest};
use lockd::ids::{Epoch, NodeName, ResourceId, VolumeId};
use lockd::local::message::Recipient;
use lockd::machine::{Answer, ClientKind, Cookie, HolderInfo, Query};
use serde_json::{Value, json};

use crate::commands::{OTHER_RELEASE, print};
use crate::gather::{Gathered, gather};
use crate::{Common, names, show};

/// How many resources are looked up one by one; more are looked up in the list of all.
const ONE_BY_ONE: usize = 16;

/// What a holder has done.
pub(crate) struct Done {
    epoch: Option<Epoch>,
    pub(crate) pause: Duration,
    cookie: Option<Cookie>,
}

/// How long is waited before what is in the way for a moment is asked for again.
const AGAIN: Duration = Duration::from_millis(100);

/// Asks a program, which `to` finds, until it is done, or refused for another reason than one that passes by itself.
pub(crate) fn ask(
    common: &Common,
    connection: &Connection,
    request: &HolderRequest,
    to: impl Fn() -> anyhow::Result<Recipient>,
) -> anyhow::Result<Done> {
    let since = Instant::now();
    loop {
        let left = common.patience().saturating_sub(since.elapsed()).max(AGAIN);
        match connection.ask_holder_within(to()?, request, left)? {
            HolderReply::Passing(_) if since.elapsed() + AGAIN < common.patience() => thread::sleep(AGAIN),
            HolderReply::Passing(why) => bail!("{why}; tried for {} s", common.patience().as_secs_f64()),
            reply => return done(reply),
        }
    }
}

fn done(reply: HolderReply) -> anyhow::Result<Done> {
    match reply {
        HolderReply::Done { epoch, pause_ns, cookie } => {
            Ok(Done { epoch, pause: Duration::from_nanos(pause_ns), cookie })
        }
        HolderReply::Locks(_) | HolderReply::Document(_) | HolderReply::Passing(_) => {
            bail!("the holder's answer is of another release")
        }
        HolderReply::Refused(why) => Err(anyhow!(why)),
    }
}

/// The node whose lockd is asked.
fn asked_node(connection: &Connection) -> anyhow::Result<NodeName> {
    let document: Value = serde_json::from_str(&connection.status()?)?;
    let node = document["asked"].as_str().context("lockd does not say which node it is")?;
    Ok(node.parse()?)
}

/// The node that is meant, or the one that is asked.
fn node(common: &Common, connection: &Connection) -> anyhow::Result<NodeName> {
    match &common.node {
        Some(node) => Ok(node.clone()),
        None => asked_node(connection),
    }
}

pub(crate) fn volume_of(resource: &ResourceId) -> Option<VolumeId> {
    match resource {
        ResourceId::Coordinator(volume) | ResourceId::File(volume, _) => Some(*volume),
        ResourceId::Vm(_) => None,
    }
}

/// Those that one program can hold, together.
fn by_program(resources: Vec<ResourceId>) -> Vec<Vec<ResourceId>> {
    let mut sets: BTreeMap<Option<VolumeId>, Vec<ResourceId>> = BTreeMap::new();
    for resource in resources {
        sets.entry(volume_of(&resource)).or_default().push(resource);
    }
    sets.into_values().collect()
}

/// How a set is called in a message.
pub(crate) fn called(resources: &[ResourceId]) -> String {
    match resources {
        [one] => one.to_string(),
        all => format!("{} files", all.len()),
    }
}

pub(crate) fn acquire(common: &Common, connection: &Connection, paths: &[String]) -> anyhow::Result<()> {
    let resources = names::resources(paths, common.patience())?;
    let node = node(common, connection)?;
    for set in by_program(resources.clone()) {
        let Some(first) = set.first().cloned() else { continue };
        let what = called(&set);
        let to = Recipient::Node { node: node.clone(), resource: first };
        ask(common, connection, &HolderRequest::Acquire(set), || Ok(to.clone())).context(what)?;
    }
    let holders = holders(connection, &resources)?;
    let lines: Vec<Value> = resources
        .iter()
        .zip(&holders)
        .map(|(resource, holder)| {
            let epoch = holder.as_ref().map(|holder| holder.epoch.0);
            json!({ "resource": resource.to_string(), "node": node.as_str(), "epoch": epoch })
        })
        .collect();
    print(common, &Value::Array(lines.clone()), || {
        for line in &lines {
            println!("{} is held by node {node}", line["resource"].as_str().unwrap_or_default());
        }
    });
    Ok(())
}

pub(crate) fn release(common: &Common, connection: &Connection, paths: &[String]) -> anyhow::Result<()> {
    let resources = names::resources(paths, common.patience())?;
    let held = holders(connection, &resources)?;
    let mut sets: BTreeMap<_, Vec<ResourceId>> = BTreeMap::new();
    for (resource, holder) in resources.iter().zip(held) {
        let holder = holder.with_context(|| format!("nobody holds {resource}"))?;
        sets.entry((holder.client, volume_of(resource))).or_default().push(resource.clone());
    }
    for ((client, _), set) in sets {
        let what = called(&set);
        ask(common, connection, &HolderRequest::Release(set), || Ok(Recipient::Client(client)))
            .context(what)?;
    }
    let lines: Vec<Value> =
        resources.iter().map(|resource| json!({ "resource": resource.to_string() })).collect();
    print(common, &Value::Array(lines.clone()), || {
        for line in &lines {
            println!("{} is released", line["resource"].as_str().unwrap_or_default());
        }
    });
    Ok(())
}

/// Who holds each of these.
pub(crate) fn holders(
    connection: &Connection,
    resources: &[ResourceId],
) -> anyhow::Result<Vec<Option<HolderInfo>>> {
    if resources.len() <= ONE_BY_ONE {
        let one = |resource: &ResourceId| match connection.query(Query::Resource(resource.clone()))? {
            Answer::Resource(info) => Ok(info.holders.into_iter().next()),
            _ => bail!(OTHER_RELEASE),
        };
        return resources.iter().map(one).collect();
    }
    let all = connection.resources()?.into_iter();
    let mut all: BTreeMap<_, _> = all.map(|info| (info.resource, info.holders)).collect();
    let of = |resource: &ResourceId| all.remove(resource).and_then(|holders| holders.into_iter().next());
    Ok(resources.iter().map(of).collect())
}

/// Who hands these over: the one that holds them; of files that nobody holds, the volume's coordinator.
fn source(connection: &Connection, resources: &[ResourceId]) -> anyhow::Result<Recipient> {
    let held = holders(connection, resources)?;
    let mut clients: Vec<_> = held.iter().flatten().map(|holder| (holder.client, &holder.node)).collect();
    clients.sort_unstable();
    clients.dedup();
    match clients[..] {
        [(client, _)] => Ok(Recipient::Client(client)),
        [] => match resources.first() {
            Some(ResourceId::File(volume, _)) => Ok(Recipient::Holder(ResourceId::Coordinator(*volume))),
            Some(other) => bail!("{other} is held by nobody; acquire it where it is wanted"),
            None => bail!("nothing is named"),
        },
        _ => {
            let nodes: Vec<_> = clients.iter().map(|(client, node)| format!("{client} on {node}")).collect();
            bail!(
                "these are held by {} programs ({}); a set is handed over by one: name each holder's apart",
                clients.len(),
                nodes.join(", ")
            )
        }
    }
}

pub(crate) fn transfer(
    common: &Common,
    connection: &Connection,
    resources: Vec<ResourceId>,
    to: &NodeName,
    with_locks: bool,
    expected: Option<Epoch>,
) -> anyhow::Result<()> {
    let count = resources.len();
    let whole = match (with_locks, expected) {
        (true, _) => Some("--with-locks takes along the locks of the programs of one owner"),
        (false, Some(_)) => Some("--epoch compares what one owner has"),
        (false, None) => None,
    };
    let Gathered { resources, pause: gathering } = gather(common, connection, &resources, to, whole)?;
    let named = resources.clone();
    let to_node = to.clone();
    let request = match expected {
        None => HolderRequest::Transfer { resources, to: to_node, with_locks },
        // Who holds them compares: what is looked up here may have changed when it is asked.
        Some(epoch) => HolderRequest::TransferIn { epoch, resources, to: to_node, with_locks },
    };
    let Done { epoch, pause, cookie } = ask(common, connection, &request, || source(connection, &named))?;
    let cookie = cookie.map(|cookie| cookie.to_string());
    let pause_s = (gathering + pause).as_secs_f64();
    let epoch = epoch.map(|epoch| epoch.0);
    let line =
        json!({ "count": count, "to": to.as_str(), "epoch": epoch, "pause_s": pause_s, "cookie": cookie });
    print(common, &Value::Array(vec![line]), || {
        println!("{count} handed over to node {to}, pause {}", show::span(pause_s));
        if let Some(cookie) = cookie {
            println!("locks went along: lockctl adopt {cookie} --node {to}");
        }
    });
    Ok(())
}

pub(crate) fn adopt(
    common: &Common,
    connection: &Connection,
    cookie: Cookie,
    owner: Option<u64>,
    drop: bool,
) -> anyhow::Result<()> {
    let node = node(common, connection)?;
    let Answer::Clients(clients) = connection.query(Query::Clients)? else {
        bail!(OTHER_RELEASE);
    };
    let mounts = clients
        .into_iter()
        .filter(|info| info.node == node && matches!(info.kind, ClientKind::Csvfs { .. }))
        .map(|info| info.client);
    let request =
        if drop { HolderRequest::DropLocks { cookie } } else { HolderRequest::Adopt { cookie, owner } };
    let mut refused = format!("no volume is mounted on node {node}");
    for mount in mounts {
        match connection.ask_holder(Recipient::Client(mount), &request)? {
            HolderReply::Locks(locks) => {
                let done = if drop { "dropped" } else { "adopted" };
                let document = json!({ "cookie": cookie.to_string(), "node": node.as_str(), done: locks });
                print(common, &document, || println!("{locks} locks {done} on node {node}"));
                return Ok(());
            }
            HolderReply::Refused(why) => refused = why,
            HolderReply::Done { .. } | HolderReply::Document(_) | HolderReply::Passing(_) => {
                bail!("the holder's answer is of another release")
            }
        }
    }
    Err(anyhow!(refused))
}
