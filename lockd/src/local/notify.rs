//! Telling the service manager that a daemon is ready: one datagram to the socket that `NOTIFY_SOCKET` names, as systemd's
//! `sd_notify(3)` specifies it for `Type=notify`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service is ready. Nothing happens where no service manager has asked to be told.
pub fn ready() {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = tell(&socket, b"READY=1")
    {
        tracing::warn!(%error, "the service manager could not be told that this service is ready");
    }
}

fn tell(socket: &OsStr, what: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(what, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_hears_it_on_both_kinds_of_sockets() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("csvfs-test-{}", std::process::id());
        let on_path = UnixDatagram::bind(&path).expect("bound");
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let abstracted = UnixDatagram::bind_addr(&address).expect("bound");
        let named = format!("@{name}");
        for (manager, socket) in [(on_path, path.as_os_str()), (abstracted, OsStr::new(&named))] {
            tell(socket, b"READY=1").expect("told");
            let mut heard = [0; 16];
            let length = manager.recv(&mut heard).expect("heard");
            assert_eq!(&heard[..length], b"READY=1");
        }
        assert!(tell(folder.path().join("nobody").as_os_str(), b"READY=1").is_err());
    }
}
