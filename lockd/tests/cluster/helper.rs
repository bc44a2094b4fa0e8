//! A client in a process of its own, which a test can kill.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use lockd::authority::Authority;
use lockd::client::Deaf;
use lockd::ids::ResourceId;
use lockd::local::run_dir::RunDir;
use lockd::machine::ClientKind;

use crate::site::{MOUNT, Site, connect};

/// A process that holds a resource until it is killed.
pub struct Holder {
    child: Child,
}

impl Holder {
    /// Starts one on `node`. With `disconnect` it closes its connection to lockd, and lives on.
    pub fn start(site: &Site, node: usize, resource: &ResourceId, disconnect: bool) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "helper::holds_until_it_is_killed", "--nocapture", "--ignored"])
            .env("HOLDER_RUN_DIR", site.run_base())
            .env("HOLDER_NODE", format!("n{node}"))
            .env("HOLDER_RESOURCE", resource.to_string())
            .env("HOLDER_DISCONNECT", if disconnect { "1" } else { "" })
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the holder starts");
        let stdout = child.stdout.take().expect("piped");
        let said = BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line.contains("HOLDING"));
        assert!(said, "the holder did not come so far");
        Self { child }
    }

    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: the program of [`Holder`].
#[test]
#[ignore = "the other side of a test"]
fn holds_until_it_is_killed() {
    let Ok(base) = std::env::var("HOLDER_RUN_DIR") else { return };
    let variable = |name: &str| std::env::var(name).expect("set by the test");
    let run_dir = RunDir::of(&PathBuf::from(base), "lab", &variable("HOLDER_NODE"));
    let resource: ResourceId = variable("HOLDER_RESOURCE").parse().expect("a resource");
    let kind = if matches!(resource, ResourceId::Vm(_)) { ClientKind::Vmhost } else { MOUNT };
    let client = connect(run_dir, kind, Arc::new(Deaf));
    client.acquire(&resource, client.client()).expect("acquired");
    if !variable("HOLDER_DISCONNECT").is_empty() {
        drop(client);
    } else {
        std::mem::forget(client);
    }
    println!("HOLDING");
    std::io::stdout().flush().expect("flushed");
    loop {
        std::thread::park();
    }
}
