use super::super::*;
use super::cluster::*;
use crate::ids::{Epoch, ResourceId, Sequence, SlotId};

#[test]
fn a_resource_has_one_holder_who_is_named() {
    let mut cluster = Cluster::new();
    let (_, a) = cluster.mounted("n1");
    let (_, b) = cluster.mounted("n2");
    let epoch = cluster.acquire(a, &file(1));
    assert_eq!(cluster.acquire(a, &file(1)), epoch, "idempotent for the holder");
    let refusal = cluster.ask_refused(b, acquisition(&file(1)));
    assert!(matches!(&refusal, Refusal::Held { holder, .. } if holder.client == a && holder.epoch == epoch));
    assert!(refusal.to_string().contains("node n1"), "{refusal}");
    let stale = Operation::Release { resource: file(1), epoch: Epoch(epoch.0 + 1) };
    assert!(matches!(cluster.ask_refused(a, stale), Refusal::NotHeld { .. }));
    let foreign = Operation::Release { resource: file(1), epoch };
    assert!(matches!(cluster.ask_refused(b, foreign.clone()), Refusal::NotHeld { .. }));
    cluster.ask_done(a, foreign);
    let changed = EventKind::HolderChanged { resource: file(1), holder: None };
    assert_eq!(cluster.events, [changed]);
    assert!(cluster.acquire(b, &file(1)) > epoch);
}

#[test]
fn sealed_files_are_shared() {
    let mut cluster = Cluster::new();
    let (_, a) = cluster.mounted("n1");
    let (_, b) = cluster.mounted("n2");
    let shared = Operation::Acquire { resource: file(1), mode: HoldMode::Shared, pinned: true };
    for client in [a, b] {
        let Reply::Acquired(holder) = cluster.ask(client, shared.clone()) else { panic!() };
        assert!(holder.pinned && holder.mode == HoldMode::Shared);
    }
    let Answer::Resource(info) = cluster.state.query(&Query::Resource(file(1))) else { panic!() };
    assert_eq!(info.holders.len(), 2);
    assert!(matches!(cluster.ask_refused(a, acquisition(&file(1))), Refusal::Held { .. }));
    let epoch = info.holders[1].epoch;
    cluster.ask_done(b, Operation::Release { resource: file(1), epoch });
    assert!(cluster.acquire(a, &file(1)) > epoch, "the only holder may change the mode, in a new epoch");
    assert!(matches!(cluster.ask_refused(b, shared), Refusal::Held { .. }));
}

#[test]
fn each_kind_of_client_holds_its_kind_of_resource() {
    let mut cluster = Cluster::new();
    let (session, a) = cluster.mounted("n1");
    let host = cluster.join(session, ClientKind::Vmhost);
    let tool = cluster.join(session, ClientKind::Tool);
    cluster.acquire(a, &COORDINATOR);
    cluster.acquire(host, &vm("web"));
    let foreign = ResourceId::File(OTHER_VOLUME, 1);
    for (client, resource) in
        [(a, vm("db")), (a, foreign), (host, file(1)), (tool, file(1)), (tool, vm("db"))]
    {
        let refusal = cluster.ask_refused(client, acquisition(&resource));
        assert_eq!(refusal, Refusal::WrongKind { client, resource });
    }
    for name in ["", "a/b", "x\n", "..", &"x".repeat(129)] {
        assert!(matches!(cluster.ask_refused(host, acquisition(&vm(name))), Refusal::BadName(_)), "{name:?}");
    }
    let Answer::Volumes(volumes) = cluster.state.query(&Query::Volumes) else { panic!() };
    assert_eq!(volumes[0].coordinator.as_ref().map(|holder| holder.client), Some(a));
    assert_eq!(volumes[0].sessions, [session]);
}

#[test]
fn resources_are_listed_in_pages() {
    let mut cluster = Cluster::new();
    let (session, a) = cluster.mounted("n1");
    let kind = ClientKind::Csvfs { volume: OTHER_VOLUME };
    let other = cluster.join(session, kind);
    for ino in 0..5 {
        cluster.acquire(a, &file(ino));
    }
    cluster.acquire(other, &ResourceId::File(OTHER_VOLUME, 1));
    let list = |volume, after| match cluster.state.query(&Query::Resources { volume, after }) {
        Answer::Resources(list) => list.into_iter().map(|info| info.resource).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(list(None, None).len(), 6);
    assert_eq!(list(Some(VOLUME), Some(file(2))), [file(3), file(4)]);
}

#[test]
fn a_client_that_leaves_holds_nothing() {
    let mut cluster = Cluster::new();
    let (_, a) = cluster.mounted("n1");
    cluster.acquire(a, &file(1));
    cluster.lock(a, 1, 1, 0, 9);
    cluster.ask_done(a, Operation::Leave);
    assert_eq!(cluster.holder(&file(1)), None);
    assert!(cluster.state.locks.is_empty());
    let again =
        Command::Client { client: a, slot: SlotId(0), sequence: Sequence(3), operation: Operation::Leave };
    assert_eq!(cluster.refused(again), Refusal::ClientEnded(a));
}
