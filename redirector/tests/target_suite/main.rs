//! The bundled NBD target from outside: other people's clients, who is let in, faults, arbitrary bytes, the program.

mod admission;
mod faults;
mod hostile;
mod interop;
mod lab;
mod peer;
mod program;
mod tls;
mod transmission;
