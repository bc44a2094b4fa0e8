//! Several nodes around one coordinator in one process.

mod caches;
mod files;
mod network;
mod pages;
mod realm;
mod sets;
mod simulation;
mod stage;
