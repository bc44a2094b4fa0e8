//! Sessions that fall silent.

use std::time::{Duration, Instant};

use lockd::authority::Authority;
use lockd::clock::{BootTime, Clock, SystemClock};
use lockd::ids::ResourceId;
use lockd::machine::ClientKind;

use crate::site::{Site, VOLUME, wait_for, wait_for_within};

fn vm(name: &str) -> ResourceId {
    ResourceId::Vm(name.to_owned())
}

/// The state of the session of a node, as long as it is in the table.
pub fn session_of(site: &Site, node: &str) -> Option<serde_json::Value> {
    let status = site.json(&["status"]);
    let sessions = status["state"]["sessions"].as_array()?.clone();
    sessions
        .into_iter()
        .filter(|session| session["node"] == node)
        .max_by_key(|session| session["session"].as_u64())
}

#[test]
fn l1_a_silent_session_is_ended_only_after_its_lease_and_its_files_are_free_after_the_fence() {
    let mut site = Site::prepare(1, 1, 4.0);
    // Longer than it takes to ask how a node is that does not answer.
    site.edit("grace_s = 1.0", "grace_s = 3.0");
    (0..2).for_each(|node| site.start_node(node));
    let watcher = site.mount(0);
    let client = site.client(1, crate::site::MOUNT);
    let host = site.client(1, ClientKind::Vmhost);
    let file = ResourceId::File(VOLUME, 7);
    client.acquire(&file, client.client()).expect("free");
    host.acquire(&vm("web"), host.client()).expect("free");
    let lease = std::sync::Arc::clone(client.shared_lease());
    site.kill(1);
    // The leader has received the last keep-alive no earlier than it was sent, a lease before this.
    let deadline = lease.deadline();
    let ended = wait_for("the end of the session", || {
        session_of(&site, "n1").is_none_or(|session| session["ended"].is_object()).then(|| SystemClock.boot())
    });
    assert!(ended >= deadline, "ended {:?} before its lease was over", deadline.since(ended));
    assert!(!lease.holds(&SystemClock));
    // L9: nothing is free before the fence, which here is lease and grace.
    assert!(watcher.holder(&vm("web")).is_some());
    wait_for("the file to be free", || watcher.holder(&file).is_none().then_some(()));
    wait_for("the virtual machine to be free", || watcher.holder(&vm("web")).is_none().then_some(()));
    assert!(
        SystemClock.boot() >= BootTime(deadline.0).after(Duration::from_secs(3)),
        "before the grace was over"
    );
}

#[test]
fn l1_a_leader_that_stood_still_gives_everybody_a_full_lease() {
    let site = Site::start(1, 0, 3.0);
    let client = site.client(0, ClientKind::Vmhost);
    let holding = client.acquire(&vm("web"), client.client()).expect("free");
    site.signal(0, libc::SIGSTOP);
    wait_for("the lease to lapse", || (!client.shared_lease().holds(&SystemClock)).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    site.signal(0, libc::SIGCONT);
    // L2: lapsed is not ended.
    wait_for("the lease to be won back", || {
        assert!(!client.has_ended(), "the leader has ended the session");
        client.shared_lease().holds(&SystemClock).then_some(())
    });
    assert_eq!(client.holder(&vm("web")), Some(holding));
}

#[test]
fn l3_the_clients_of_a_lockd_that_stands_still_stop_by_themselves() {
    let rules = lockd::rules::Rules::from_test_environment();
    let site = Site::start(1, 1, 2.0);
    let client = site.client(1, ClientKind::Vmhost);
    let lease = client.shared_lease();
    wait_for("the lease", || lease.admits(rules, &SystemClock).then_some(()));
    site.signal(1, libc::SIGSTOP);
    let began = Instant::now();
    wait_for_within("the lease to be over", Duration::from_secs(5), || {
        (!lease.admits(rules, &SystemClock)).then_some(())
    });
    assert!(began.elapsed() <= Duration::from_millis(2_500), "a lease of 2 s lasted {:?}", began.elapsed());
    // The leader ends the session; the node learns of it when it goes on, and so do its clients.
    wait_for("the end of the session", || {
        session_of(&site, "n1").is_none_or(|session| session["ended"].is_object()).then_some(())
    });
    site.signal(1, libc::SIGCONT);
    wait_for("the client to be told", || client.has_ended().then_some(()));
    assert!(lease.has_ended());
    assert!(client.acquire(&vm("web"), client.client()).is_err(), "it is over for good");
    let next = site.client(1, ClientKind::Vmhost);
    assert_ne!(next.session_id(), client.session_id());
    next.acquire(&vm("web"), next.client()).expect("under the new session");
}

/// Found: a program that registered as its node's session ended was told that it had ended, under which it never was.
#[test]
fn l2_programs_that_register_as_the_session_ends_get_the_next_one() {
    let site = Site::start(1, 1, 2.0);
    let before = site.client(1, ClientKind::Tool).session_id();
    site.signal(1, libc::SIGSTOP);
    wait_for("the end of the session", || {
        session_of(&site, "n1").is_none_or(|session| session["ended"].is_object()).then_some(())
    });
    // The node goes on, and asks for them under the session of which it cannot hear yet that it is over.
    site.signal(0, libc::SIGSTOP);
    site.signal(1, libc::SIGCONT);
    let sessions: Vec<_> = std::thread::scope(|scope| {
        let connecting: Vec<_> =
            (0..16).map(|_| scope.spawn(|| site.client(1, ClientKind::Vmhost).session_id())).collect();
        std::thread::sleep(Duration::from_millis(700));
        site.signal(0, libc::SIGCONT);
        connecting.into_iter().map(|client| client.join().expect("registered")).collect()
    });
    assert!(sessions.iter().all(|session| *session > before), "{sessions:?} after {before}");
}
