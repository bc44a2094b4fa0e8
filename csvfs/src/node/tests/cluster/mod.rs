//! Several nodes around one coordinator in one process.

mod caches;
mod files;
mod lost_answers;
mod network;
mod pages;
mod realm;
mod sealed;
mod sets;
mod simulation;
mod stage;
mod take_up;
mod takeover;
