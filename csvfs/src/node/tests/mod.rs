//! The node on the real coordinator and a LUN that holds, fails and loses what tests say.

mod cluster;
mod data;
mod inodes;
mod model;
mod platter;
mod rules;
mod threads;
mod world;
