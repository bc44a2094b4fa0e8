//! Messages of the local socket.
