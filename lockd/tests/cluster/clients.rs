//! Clients come, die, and come back to a lockd that was started again.

use std::time::{Duration, Instant};

use lockd::authority::{Authority, AuthorityError};
use lockd::client::ClientError;
use lockd::ids::ResourceId;
use lockd::machine::{ClientKind, Operation};

use crate::helper::Holder;
use crate::site::{Site, VOLUME, wait_for};

fn vm(name: &str) -> ResourceId {
    ResourceId::Vm(name.to_owned())
}

#[test]
fn a_client_holds_and_releases_and_another_is_told_who_holds() {
    let site = Site::start(1, 0, 8.0);
    let one = site.client(0, ClientKind::Vmhost);
    let other = site.client(0, ClientKind::Vmhost);
    assert_eq!(one.session_id(), other.session_id());
    let holding = one.acquire(&vm("web"), one.client()).expect("free");
    assert_eq!(one.acquire(&vm("web"), one.client()).expect("held already"), holding);
    assert!(matches!(other.acquire(&vm("web"), other.client()), Err(AuthorityError::Held { .. })));
    assert_eq!(other.holder(&vm("web")), Some(holding));
    assert!(one.shared_lease().holds(&lockd::clock::SystemClock));
    one.release(&vm("web"), one.client(), holding.epoch).expect("released");
    assert_eq!(other.holder(&vm("web")), None);
    let second = one.add_client().expect("one more");
    assert_ne!(second, one.client());
    let later = other.acquire(&vm("web"), other.client()).expect("free again");
    assert!(later.epoch > holding.epoch);
    other.end_client(other.client());
    assert_eq!(one.holder(&vm("web")), None);
}

#[test]
fn l10_a_process_that_only_closes_its_connection_keeps_what_it_holds_until_it_is_dead() {
    let site = Site::start(1, 0, 8.0);
    let watcher = site.client(0, ClientKind::Vmhost);
    let holder = Holder::start(&site, 0, &vm("web"), true);
    // Long enough for a lockd that took the closed connection for a death.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        assert!(watcher.holder(&vm("web")).is_some(), "its process lives and may write");
        std::thread::sleep(Duration::from_millis(50));
    }
    holder.kill();
    wait_for("the holding to be free", || watcher.holder(&vm("web")).is_none().then_some(()));
}

#[test]
fn l10_a_dead_mount_keeps_its_files_until_its_requests_are_drained() {
    let site = Site::start(1, 0, 8.0);
    let watcher = site.mount(0);
    let file = ResourceId::File(VOLUME, 7);
    let holder = Holder::start(&site, 0, &file, false);
    let holding = watcher.holder(&file).expect("held");
    holder.kill();
    wait_for("the client to be known as dead", || {
        let listed = site.json(&["show", &file.to_string()]);
        (listed["holders"][0]["state"] == "draining").then_some(())
    });
    assert_eq!(watcher.holder(&file), Some(holding), "what it had sent may yet reach the target");
    wait_for("the drain", || watcher.holder(&file).is_none().then_some(()));
}

#[test]
fn l11_a_restarted_lockd_resumes_its_session_and_its_clients_come_back() {
    let mut site = Site::start(1, 0, 8.0);
    let client = site.client(0, ClientKind::Vmhost);
    let dies = Holder::start(&site, 0, &vm("dies"), false);
    let holding = client.acquire(&vm("web"), client.client()).expect("free");
    let lease = std::sync::Arc::clone(client.shared_lease());
    site.kill(0);
    dies.kill();
    assert!(lease.holds(&lockd::clock::SystemClock), "the lease runs on without lockd");
    let before = lease.deadline();
    // A command that finds no lockd waits and is sent again.
    let asking = std::thread::scope(|scope| {
        let asking = scope.spawn(|| client.acquire(&vm("db"), client.client()));
        std::thread::sleep(Duration::from_millis(300));
        site.start_node(0);
        asking.join().expect("no panic")
    });
    asking.expect("acquired by the next lockd");
    assert!(!client.has_ended());
    assert_eq!(client.holder(&vm("web")), Some(holding));
    wait_for("the lease to be extended", || (lease.deadline() > before).then_some(()));
    wait_for("the dead one's holding to be free", || client.holder(&vm("dies")).is_none().then_some(()));
    assert_eq!(client.holder(&vm("web")), Some(holding));
}

#[test]
fn a_lockd_without_clients_ends_its_session_and_one_with_clients_keeps_it() {
    let mut site = Site::start(1, 1, 8.0);
    site.client(1, ClientKind::Tool);
    let sessions = |site: &Site| site.json(&["status"])["state"]["live_sessions"].as_u64();
    wait_for("both sessions", || (sessions(&site) == Some(2)).then_some(()));
    let client = site.client(1, ClientKind::Vmhost);
    client.acquire(&vm("web"), client.client()).expect("free");
    site.stop(1);
    assert_eq!(sessions(&site), Some(2), "its client lives on");
    site.start_node(1);
    client.leave(client.client()).expect("left");
    // The tool of this process never left: it is a client as well.
    drop(client);
}

#[test]
fn a_client_that_floods_is_refused_and_others_go_on() {
    let site = Site::start(1, 0, 8.0);
    let client = site.mount(0);
    let other = site.client(0, ClientKind::Vmhost);
    let file = ResourceId::File(VOLUME, 1);
    crate::locks::flood(&client, &file);
    other.acquire(&vm("web"), other.client()).expect("others are served");
    let ended = client.operate(lockd::ids::ClientId(9_999), Operation::Leave);
    assert!(matches!(ended, Err(ClientError::Refused(_))), "not a client of this process");
}
