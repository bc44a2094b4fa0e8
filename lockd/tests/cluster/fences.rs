//! Fences that need more than waiting. The target is none: what it has to do is reported by a client.

use std::sync::Arc;
use std::time::Duration;

use lockd::authority::Authority;
use lockd::client::{ClientConfig, ClientError, Deaf, LockClient};
use lockd::ids::{ResourceId, SessionId};
use lockd::machine::{FenceMethod, Victim};

use crate::helper::Holder;
use crate::leases::session_of;
use crate::site::{MOUNT, Site, VOLUME, wait_for};

/// Registers a mount, and waits for it so long.
fn mount_within(site: &Site, node: usize, patience: Duration) -> Result<LockClient, ClientError> {
    let (wait, patience) = (Some(patience), Some(patience));
    let (run_dir, listener) = (site.run_dir(node), Arc::new(Deaf));
    LockClient::connect(ClientConfig { run_dir, kind: MOUNT, wait, patience, listener })
}

/// Lets a node's session end while its processes live on; its number.
fn lose_session(site: &Site, node: usize) -> u64 {
    let name = format!("n{node}");
    let number = |site: &Site| session_of(site, &name)?["session"].as_u64();
    let before = wait_for("a session", || number(site));
    site.signal(node, libc::SIGSTOP);
    wait_for("its end", || {
        let session = session_of(site, &name)?;
        (session["session"] != before || session["ended"].is_object()).then_some(())
    });
    site.signal(node, libc::SIGCONT);
    wait_for("the next session", || number(site).filter(|number| *number != before));
    before
}

#[test]
fn f2_a_new_mount_waits_until_the_old_one_is_dead_and_fenced() {
    let site = Site::start(1, 1, 2.0);
    site.register_volume_fenced(0, FenceMethod::NbdTarget);
    let other = site.client(0, MOUNT);
    let file = ResourceId::File(VOLUME, 7);
    let old = Holder::start(&site, 1, &file, false);
    let victim = Victim::Session(SessionId(lose_session(&site, 1)));
    let refused = mount_within(&site, 1, Duration::from_secs(10)).map(drop).expect_err("the old one lives");
    assert!(refused.to_string().contains("still runs: unmount its folder"), "{refused}");
    old.kill();
    let refused = mount_within(&site, 1, Duration::from_secs(1)).map(drop).expect_err("it is not fenced");
    assert!(refused.to_string().contains("still being fenced"), "{refused}");
    // No target can be asked; who has tried says so.
    let tried = wait_for("an attempt", || {
        let fences = site.json(&["fences"]);
        fences[0]["tried"][0]["last_error"].as_str().map(str::to_owned)
    });
    assert!(tried.contains("names no control port"), "{tried}");
    other.report_fenced(VOLUME, victim, FenceMethod::NbdTarget).expect("reported");
    let new = mount_within(&site, 1, Duration::from_secs(10)).expect("nothing is left of the old one");
    new.acquire(&file, new.client()).expect("free");
}

#[test]
fn f1_a_node_that_does_not_report_is_ended_and_fenced_itself() {
    let site = Site::start(1, 2, 2.0);
    let mount = site.mount(0);
    let file = ResourceId::File(VOLUME, 7);
    let dies = Holder::start(&site, 1, &file, false);
    // It lives, and does not answer: nobody there reads what lockd says.
    let silent = Holder::start(&site, 2, &ResourceId::File(VOLUME, 8), true);
    dies.kill();
    wait_for("the session of the one that is silent to be ended", || {
        session_of(&site, "n2").is_none_or(|session| session["ended"]["cause"] == "forced").then_some(())
    });
    wait_for("the file to be free", || mount.holder(&file).is_none().then_some(()));
    drop(silent);
}

/// Found: what an earlier session had run was looked at before the session was waited for: a mount that asked while that session
/// ended got the next one beside the old one's living process.
#[test]
fn f2_a_mount_that_asks_as_the_session_ends_waits_for_the_old_one_too() {
    let site = Site::start(1, 1, 2.0);
    site.register_volume_fenced(0, FenceMethod::NbdTarget);
    let other = site.client(0, MOUNT);
    let old = Holder::start(&site, 1, &ResourceId::File(VOLUME, 7), false);
    let number = || session_of(&site, "n1")?["session"].as_u64();
    let before = wait_for("a session", number);
    site.signal(1, libc::SIGSTOP);
    wait_for("its end", || session_of(&site, "n1")?["ended"].is_object().then_some(()));
    other
        .report_fenced(VOLUME, Victim::Session(SessionId(before)), FenceMethod::NbdTarget)
        .expect("reported");
    wait_for("the fence to be complete", || (site.json(&["fences"]) == serde_json::json!([])).then_some(()));
    let mounts: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| mount_within(&site, 1, Duration::from_secs(10)).map(drop)))
            .collect();
        // They are in the socket when it goes on.
        std::thread::sleep(Duration::from_millis(300));
        site.signal(1, libc::SIGCONT);
        asking.into_iter().map(|mount| mount.join().expect("asked")).collect()
    });
    for mount in mounts {
        let refused = mount.expect_err("the old one lives");
        assert!(refused.to_string().contains("still runs: unmount its folder"), "{refused}");
    }
    old.kill();
    mount_within(&site, 1, Duration::from_secs(10)).expect("nothing is left of the old one");
}
