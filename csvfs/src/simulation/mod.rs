//! A whole cluster in one process, from a seed: nodes, coordinator, control plane, network and LUN
//! ([`docs/SIMULATION.md`](../../../docs/SIMULATION.md)).
//!
//! | module | what |
//! |---|---|
//! | `schedule`, `trace` | virtual time, who runs next, what has happened |
//! | `network`, `lun` | what loses, repeats, delays and reorders |
//! | `way` | a process's connections to the LUN, under production's paths |
//! | `lockd`, `agent` | the production state machine under a replicated log; a node's side of it |
//! | `member`, `plate` | the production node, plane and coordinator as one process; the store of whoever has that role |
//! | `words`, `model`, `race`, `holdings`, `users` | what is written and what must be read; what is held |
//! | `faults`, `world` | what goes wrong, and the run as a whole |

mod agent;
mod faults;
mod holdings;
mod lockd;
mod lun;
mod member;
mod model;
mod network;
mod plate;
mod race;
mod schedule;
mod tests;
mod trace;
mod users;
mod way;
mod words;
mod world;

use ::lockd::ids::VolumeId;

/// The volume.
const VOLUME: VolumeId = VolumeId([7; 16]);
