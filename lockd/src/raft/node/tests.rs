//! Whole voters in one process.

mod cluster;
mod election;
mod members;
mod rules;
mod speed;
mod storage;
mod time;
