//! Whole lockd processes on loopback addresses, with clients that live, die and come back.

mod clients;
mod failover;
mod fences;
mod figures;
mod handover;
mod helper;
mod leases;
mod locks;
mod programs;
mod site;
mod watchdog;
