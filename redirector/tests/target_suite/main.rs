//! The bundled NBD target from outside: other people's clients, who is let in, faults, arbitrary bytes, the program.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod faults;
mod hostile;
mod interop;
mod lab;
mod peer;
mod program;
mod tls;
mod transmission;
