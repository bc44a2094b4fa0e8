//! What is shown, as text and as JSON.

use lockd::locks::LockState;
use lockd::machine::{HolderInfo, LockInfo, ResourceInfo};
use serde_json::{Value, json};

pub(crate) fn age_s(now_ns: u64, since_ns: u64) -> f64 {
    std::time::Duration::from_nanos(now_ns.saturating_sub(since_ns)).as_secs_f64()
}

/// A span of time for people.
pub(crate) fn span(seconds: f64) -> String {
    match seconds {
        0.0 => "now".to_owned(),
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

fn holder_json(holder: &HolderInfo, now_ns: u64) -> Value {
    json!({
        "node": holder.node.as_str(),
        "session": holder.session.0,
        "client": holder.client.0,
        "mode": holder.mode.to_string(),
        "epoch": holder.epoch.0,
        "since_s": age_s(now_ns, holder.since_ns),
        "pinned": holder.pinned,
        "state": format!("{:?}", holder.state).to_lowercase(),
    })
}

pub(crate) fn resource_json(info: &ResourceInfo, now_ns: u64) -> Value {
    let holders: Vec<Value> = info.holders.iter().map(|holder| holder_json(holder, now_ns)).collect();
    json!({
        "resource": info.resource.to_string(),
        "holders": holders,
        "locks": info.locks,
        "locks_in_escrow": info.locks_in_escrow,
        "waiting": info.waiting,
    })
}

pub(crate) fn lock_json(info: &LockInfo) -> Value {
    let lock = info.listed.lock;
    let (state, number) = match info.listed.state {
        LockState::Held(grant) => ("held", grant.0),
        LockState::Waiting(ticket) => ("waiting", ticket.0),
    };
    json!({
        "state": state,
        "number": number,
        "kind": format!("{:?}", lock.owner.kind).to_lowercase(),
        "mode": lock.mode.to_string(),
        "range": lock.range.to_string(),
        "node": info.node.as_ref().map(|node| node.as_str()),
        "client": lock.owner.client.0,
        "owner": lock.owner.id,
        "pid": lock.pid,
        "escrow_for": info.escrow.map(|session| session.0),
    })
}

/// The lines of `lockctl ls`.
pub(crate) fn print_list(resources: &[ResourceInfo], now_ns: u64) {
    if resources.is_empty() {
        println!("nothing is held");
        return;
    }
    println!(
        "{:<61} {:<12} {:<8} {:<10} {:<15} {:<10} STATE",
        "RESOURCE", "NODE", "CLIENT", "MODE", "EPOCH", "SINCE"
    );
    for info in resources {
        for holder in &info.holders {
            println!(
                "{:<61} {:<12} {:<8} {:<10} {:<15} {:<10} {}",
                info.resource.to_string(),
                holder.node,
                holder.client.to_string(),
                holder.mode.to_string(),
                holder.epoch.to_string(),
                span(age_s(now_ns, holder.since_ns)),
                holder.state,
            );
        }
    }
}

/// The text of `lockctl show`.
pub(crate) fn print_resource(info: &ResourceInfo, locks: &[LockInfo], now_ns: u64) {
    println!("{}", info.resource);
    if info.holders.is_empty() {
        println!("  held by nobody");
    }
    for holder in &info.holders {
        let pinned = if holder.pinned { ", pinned" } else { "" };
        println!("  held by {holder} since {} ago{pinned}", span(age_s(now_ns, holder.since_ns)));
    }
    for lock in locks {
        let request = lock.listed.lock;
        let node = lock.node.as_ref().map_or("?", |node| node.as_str());
        let state = match lock.listed.state {
            LockState::Held(_) => "holds",
            LockState::Waiting(_) => "waits for",
        };
        let escrow =
            lock.escrow.map(|session| format!(", in escrow for session {session}")).unwrap_or_default();
        println!(
            "  process {} on node {node} ({}) {state} a lock on {}: {}, {}{escrow}",
            request.pid,
            request.owner.client,
            request.range,
            request.mode,
            format!("{:?}", request.owner.kind).to_lowercase(),
        );
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

fn number(value: &Value, key: &str) -> String {
    value[key].as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn ago(value: &Value, key: &str) -> String {
    value[key].as_f64().map_or_else(|| "-".to_owned(), span)
}

/// The text of `lockctl status`.
pub(crate) fn print_status(status: &Value) {
    println!("cluster {}, asked at node {}", text(status, "cluster"), text(status, "asked"));
    match status["problem"].as_str() {
        Some(problem) => println!("NO QUORUM: {problem}"),
        None => match status["leader"].as_str() {
            Some(leader) => println!("quorum: yes, node {leader} leads"),
            None => println!("quorum: yes; the leader has just changed"),
        },
    }
    let state = &status["state"];
    if state.is_object() {
        println!(
            "{} live sessions, {} held resources, {} file locks; lease {}, grace {}",
            number(state, "live_sessions"),
            number(state, "resources"),
            number(state, "locks"),
            ago(state, "lease_s"),
            ago(state, "grace_s"),
        );
    }
    println!();
    println!(
        "{:<14} {:<10} {:<6} {:<9} {:<7} {:<13} {:<8} {:<9} CERTIFICATE",
        "NODE", "ROLE", "TERM", "APPLIED", "LAG", "LAST CONTACT", "SESSION", "LEASE"
    );
    let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let leader = nodes.iter().find(|node| node["node"] == status["leader"]);
    for node in nodes {
        let voter = &node["voter"];
        let role = match (node["reachable"].as_bool(), voter["role"].as_str()) {
            (Some(true), Some(role)) => role,
            (Some(true), None) => "agent",
            _ => "UNREACHED",
        };
        // The leader knows best how far the others are.
        let seen = leader.and_then(|leader| leader["voter"]["voters"].as_array());
        let seen = seen.and_then(|seen| seen.iter().find(|other| other["node"] == node["node"]));
        let nothing = Value::Null;
        let seen = seen.unwrap_or(&nothing);
        let days = node["certificate_days_left"].as_u64();
        println!(
            "{:<14} {:<10} {:<6} {:<9} {:<7} {:<13} {:<8} {:<9} {}",
            text(node, "node"),
            role,
            number(voter, "term"),
            number(voter, "applied"),
            number(seen, "lag"),
            ago(seen, "last_contact_s"),
            number(node, "session"),
            ago(node, "lease_left_s"),
            days.map_or_else(|| "-".to_owned(), |days| format!("{days} days left")),
        );
        let conflicts = node["conflicts"].as_array().map_or(&[][..], Vec::as_slice);
        for trouble in [&node["trouble"], &voter["trouble"]].into_iter().chain(conflicts) {
            if let Some(trouble) = trouble.as_str() {
                println!("  {trouble}");
            }
        }
    }
}

/// The text of `lockctl voters`.
pub(crate) fn print_voters(voters: &Value) {
    println!("{:<14} {:<8} {:<10} {:<8} LAST CONTACT", "NODE", "VOTE", "MATCHED", "LAG");
    for voter in voters.as_array().map_or(&[][..], Vec::as_slice) {
        println!(
            "{:<14} {:<8} {:<10} {:<8} {}",
            text(voter, "node"),
            if voter["voter"] == true { "yes" } else { "no" },
            number(voter, "matched"),
            number(voter, "lag"),
            ago(voter, "last_contact_s"),
        );
        if let Some(trouble) = voter["trouble"].as_str() {
            println!("  {trouble}");
        }
    }
}
