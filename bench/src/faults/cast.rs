//! Which node plays which part in a fault.

use std::fmt;

use anyhow::{Context, Result};
use lab::Cluster;
use lab::wait::until;

use super::{LIMIT, NODES};

/// What the victim is besides the owner of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Not coordinator, and not leader of the voters.
    Neither,
    /// The volume's coordinator.
    Coordinator,
    /// The volume's coordinator, and lockd's leader.
    CoordinatorAndLeader,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Neither => ", neither coordinator nor lockd's leader",
            Self::Coordinator => ", the coordinator",
            Self::CoordinatorAndLeader => ", the coordinator and lockd's leader",
        })
    }
}

/// Three nodes by their numbers.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// Whom the fault befalls; it owns a file.
    pub victim: u8,
    /// Who then writes that file.
    pub heir: u8,
    /// Who owns another file, and makes names.
    pub owner: u8,
    /// Whether the victim coordinates.
    pub coordinates: bool,
}

/// Moves the coordinator's role to a node, which may not follow the last coordinator yet.
pub fn coordinate(lab: &Cluster, number: u8) -> Result<()> {
    let mut refused = None;
    let moved = until(&format!("n{number} coordinates"), LIMIT, || {
        let moved = match lab.coordinator(number) {
            Ok(now) if now == number => Ok(()),
            _ => lab.move_coordinator(number, number).map(drop),
        };
        moved.map_err(|error| refused = Some(error)).ok()
    });
    moved.with_context(|| format!("the last refusal: {refused:#?}"))
}

impl Cast {
    /// Gives the roles to the nodes, and moves the coordinator's to where it belongs.
    pub fn assign(lab: &Cluster, part: Part) -> Result<Self> {
        let leader = until("somebody leads", LIMIT, || lab.leader(1).ok())?;
        let all = 1..=NODES;
        let other = all.clone().find(|number| *number != leader).context("there are several nodes")?;
        let (victim, coordinator) = match part {
            Part::Neither => (other, leader),
            Part::Coordinator => (other, other),
            Part::CoordinatorAndLeader => (leader, leader),
        };
        coordinate(lab, coordinator)?;
        let mut left = all.filter(|number| *number != victim);
        let (heir, owner) = left.next().zip(left.next()).context("there are three nodes")?;
        Ok(Self { victim, heir, owner, coordinates: coordinator == victim })
    }
}
