//! The local side of lockd: its Unix socket, and the processes behind it.
//!
//! Clients (mounts, virtual machine hosts, `lockctl`) speak to the lockd of their node over a Unix socket, in frames with
//! request ids ([`frame`], [`message`]). Lockd knows them by the kernel's word alone: the socket's peer credentials and a
//! pidfd ([`process`]). What comes from the socket is not trusted to be well-formed; what is not ends its connection and
//! nothing else.

pub mod frame;
pub mod message;
pub mod notify;
mod pidfd;
pub mod process;
pub mod run_dir;
pub mod xattr;

#[cfg(test)]
mod tests;
