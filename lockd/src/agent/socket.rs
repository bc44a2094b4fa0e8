//! The local socket.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::UnixListener;

use super::connection;
use super::core::Core;

/// How many connections there may be.
const CONNECTIONS_MAX: usize = 512;

/// Listens on `path`, where an earlier lockd may have left its socket. Only the user of lockd may connect.
pub(super) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves connections for ever.
pub(super) async fn run(core: Arc<Core>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if core.connections.lock().len() >= CONNECTIONS_MAX {
                    tracing::warn!("{CONNECTIONS_MAX} local connections are open; a further one is refused");
                    continue;
                }
                let id = core.last_connection.fetch_add(1, Ordering::Relaxed) + 1;
                tokio::spawn(connection::serve(Arc::clone(&core), id, stream));
            }
            Err(error) => {
                // Out of descriptors, most likely: some will be closed.
                tracing::warn!(%error, "cannot accept a local connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
