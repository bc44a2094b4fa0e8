//! File locks across nodes.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use lockd::client::LockClient;
use lockd::ids::ResourceId;
use lockd::locks::{
    ByteRange, LockError, LockKind, LockMode, LockOwner, LockReply, LockRequest, OnLockReply,
};

use crate::site::{Site, VOLUME};

pub fn request(client: &LockClient, id: u64, mode: LockMode) -> LockRequest {
    let owner = LockOwner { client: client.client(), kind: LockKind::Ofd, id };
    LockRequest { owner, pid: std::process::id(), mode, range: ByteRange::WHOLE }
}

fn reply() -> (OnLockReply, Receiver<LockReply>) {
    let (sender, receiver) = channel();
    (Box::new(move |reply| sender.send(reply).expect("somebody waits")), receiver)
}

fn answer(receiver: &Receiver<LockReply>) -> LockReply {
    receiver.recv_timeout(Duration::from_secs(15)).expect("an answer")
}

fn set(client: &LockClient, file: &ResourceId, request: LockRequest, wait: bool) -> LockReply {
    let (on_reply, receiver) = reply();
    client.set_lock(file, request, wait, on_reply);
    answer(&receiver)
}

/// Asks for more than a client may wait for.
pub fn flood(client: &LockClient, file: &ResourceId) {
    set(client, file, request(client, 0, LockMode::Exclusive), false).expect("free");
    let (sender, receiver) = channel();
    for id in 1..=1_200 {
        let sender = sender.clone();
        // The rest is answered when nobody asks any more.
        let on_reply = Box::new(move |reply| sender.send(reply).unwrap_or_default());
        client.set_lock(file, request(client, id, LockMode::Exclusive), true, on_reply);
    }
    let refused = receiver.recv_timeout(Duration::from_secs(15)).expect("a refusal");
    assert!(matches!(refused, Err(LockError::TooManyWaiters { .. })), "{refused:?}");
}

#[test]
fn locks_hold_across_nodes_and_who_waits_is_called() {
    let site = Site::start(3, 1, 8.0);
    let file = ResourceId::File(VOLUME, 3);
    let one = site.mount(0);
    let other = site.client(3, crate::site::MOUNT);
    let grant = set(&one, &file, request(&one, 1, LockMode::Exclusive), false).expect("free");
    let refused = set(&other, &file, request(&other, 1, LockMode::Shared), false);
    assert!(matches!(refused, Err(LockError::WouldBlock(_))), "{refused:?}");
    let seen = other.test_lock(&file, request(&other, 1, LockMode::Shared)).expect("answered");
    assert_eq!(seen.expect("in the way").owner.client, one.client());

    let (on_reply, granted) = reply();
    other.set_lock(&file, request(&other, 1, LockMode::Exclusive), true, on_reply);
    let (on_reply, interrupted) = reply();
    let handle = other.set_lock(&file, request(&other, 2, LockMode::Exclusive), true, on_reply);
    assert!(granted.recv_timeout(Duration::from_millis(200)).is_err(), "it is held");
    assert!(other.cancel_lock(handle));
    assert_eq!(answer(&interrupted), Err(LockError::Interrupted));
    let owner = request(&one, 1, LockMode::Exclusive).owner;
    one.unlock(&file, owner, ByteRange::WHOLE, Some(grant)).expect("unlocked");
    answer(&granted).expect("granted to who waits");
    assert!(!other.cancel_lock(handle), "answered long ago");

    // A waiter at the first node, and the holder closes its file.
    let (on_reply, granted) = reply();
    one.set_lock(&file, request(&one, 1, LockMode::Exclusive), true, on_reply);
    other.release_owner(&file, request(&other, 1, LockMode::Exclusive).owner).expect("released");
    answer(&granted).expect("granted to who waits");
}

#[test]
fn who_waits_for_a_lock_gets_it_after_lockd_was_started_again() {
    let mut site = Site::start(1, 1, 8.0);
    let file = ResourceId::File(VOLUME, 3);
    let one = site.mount(0);
    let other = site.client(1, crate::site::MOUNT);
    set(&one, &file, request(&one, 1, LockMode::Exclusive), false).expect("free");
    let (on_reply, granted) = reply();
    other.set_lock(&file, request(&other, 1, LockMode::Exclusive), true, on_reply);
    crate::site::wait_for("the request to wait", || {
        (site.json(&["show", &file.to_string()])["waiting"] == 1).then_some(())
    });
    site.kill(1);
    // The grant is made while nobody can tell of it.
    one.release_owner(&file, request(&one, 1, LockMode::Exclusive).owner).expect("released");
    site.start_node(1);
    answer(&granted).expect("it looks what it has missed");
}
