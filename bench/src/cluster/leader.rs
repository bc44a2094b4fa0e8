//! The death of lockd's leader.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::Cluster;
use lab::wait::until;
use serde_json::Value;

use super::row;
use crate::figure::{Bar, Row, Spread};
use crate::stage::Effort;

/// How long a voter that starts again may take to be one of three.
const BACK: Duration = Duration::from_secs(30);

fn status(lab: &Cluster, node: u8) -> Result<Value> {
    Ok(serde_json::from_str(&lab.lockctl(&format!("n{node}"), &["--json", "status"])?)?)
}

/// lockd's leader is killed; how long until the next lock is had on a mount whose own lockd lives.
pub fn killed(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    let mut seconds = Vec::new();
    for _ in 0..effort.rounds {
        let leader = lab.leader(1)?;
        let asked = if leader == 2 { 3 } else { 2 };
        let leader = lab.node(leader).name();
        let file = File::create(lab.path(asked, "after"))?;
        file.lock()?;
        file.unlock()?;
        lab.kill(&leader, "lockd")?;
        let began = Instant::now();
        file.lock()?;
        seconds.push(began.elapsed().as_secs_f64());
        lab.restart(&leader, "lockd")?;
        until("the killed voter is back", BACK, || {
            let status = status(lab, asked).ok()?;
            (status["problem"].is_null() && status["leader"].is_string()).then_some(())
        })?;
    }
    let spread = Spread::of(seconds);
    let what = "lockd's leader killed: until the next lock on a mount";
    Ok(vec![row(what, format!("{spread} s"), spread, Bar::AtMost(2.0))])
}
