//! x
#![allow(dead_code)]
mod blocks;
mod gate;
mod layout;
mod stock;
mod task;
mod turn;
