//! A network between two addresses that can fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

/// Carries datagrams between whoever sends to it and one address, unless it is cut.
pub(super) struct Proxy {
    cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(super) async fn start(here: SocketAddr, there: SocketAddr) -> Self {
        let cut = Arc::new(AtomicBool::new(false));
        let near = UdpSocket::bind(here).await.unwrap();
        let far = UdpSocket::bind(SocketAddr::new(here.ip(), 0)).await.unwrap();
        let is_cut = cut.clone();
        let task = tokio::spawn(async move {
            let (mut request, mut reply) = (vec![0; 65536], vec![0; 65536]);
            let mut client = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut request) => {
                        client = Some(from);
                        if !is_cut.load(Ordering::Relaxed) {
                            let _ = far.send_to(&request[..length], there).await;
                        }
                    }
                    Ok((length, _)) = far.recv_from(&mut reply) => {
                        if let (Some(client), false) = (client, is_cut.load(Ordering::Relaxed)) {
                            let _ = near.send_to(&reply[..length], client).await;
                        }
                    }
                }
            }
        });
        Self { cut, task }
    }

    pub(super) fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
