use super::super::*;
use super::cluster::*;
use crate::ids::{ClientId, Epoch, SessionId, VolumeId};

#[test]
fn a_session_and_a_client_are_known_by_their_nonce() {
    let mut cluster = Cluster::new();
    let open = Command::OpenSession { node: node("n1"), nonce: Nonce(77) };
    let Reply::Session(session) = cluster.apply(&open) else { panic!() };
    assert_eq!(cluster.apply(&open), Reply::Session(session));
    let other = Command::OpenSession { node: node("n1"), nonce: Nonce(78) };
    assert_eq!(cluster.refused(other), Refusal::NodeHasSession { node: node("n1"), session });
    let add = Command::AddClient { session, nonce: Nonce(1), kind: mount(), pid: 3 };
    let Reply::Client(client) = cluster.apply(&add) else { panic!() };
    assert_eq!(cluster.apply(&add), Reply::Client(client));
    let Answer::Clients(clients) = cluster.state.query(&Query::Clients) else { panic!() };
    assert_eq!(clients.len(), 1);
    assert_eq!((clients[0].client, clients[0].node.as_str(), clients[0].pid), (client, "n1", 3));
}

#[test]
fn l2_an_ended_session_never_comes_back() {
    let mut cluster = Cluster::new();
    let open = Command::OpenSession { node: node("n1"), nonce: Nonce(77) };
    let Reply::Session(session) = cluster.apply(&open) else { panic!() };
    let client = cluster.join(session, mount());
    cluster.end(session);
    cluster.end(session);
    assert_eq!(cluster.refused(open), Refusal::SessionEnded(session));
    let add = Command::AddClient { session, nonce: Nonce(1), kind: ClientKind::Tool, pid: 3 };
    assert_eq!(cluster.refused(add), Refusal::SessionEnded(session));
    let gone = Command::ClientGone { session, client };
    assert_eq!(cluster.refused(gone), Refusal::SessionEnded(session));
    assert_eq!(cluster.ask_refused(client, acquisition(&file(1))), Refusal::ClientEnded(client));
    let next = cluster.open("n1");
    assert!(next > session);
}

#[test]
fn what_never_was_is_refused() {
    let mut cluster = Cluster::new();
    let (session, client) = cluster.mounted("n1");
    let (s9, c9) = (SessionId(9), ClientId(9));
    let end = Command::EndSession { session: s9, cause: EndCause::Closed };
    assert_eq!(cluster.refused(end), Refusal::SessionEnded(s9));
    let gone = Command::ClientGone { session, client: c9 };
    assert_eq!(cluster.refused(gone), Refusal::ClientEnded(c9));
    let volume = VolumeId([9; 16]);
    let kind = ClientKind::Csvfs { volume };
    let add = Command::AddClient { session, nonce: Nonce(5), kind, pid: 1 };
    assert_eq!(cluster.refused(add), Refusal::UnknownVolume(volume));
    let (other, _) = cluster.mounted("n2");
    let gone = Command::ClientGone { session: other, client };
    assert_eq!(cluster.refused(gone), Refusal::NotOfSession { client, session: other });
}

#[test]
fn a_name_goes_to_a_new_volume_when_the_old_one_is_out_of_use() {
    let mut cluster = Cluster::new();
    let (_, client) = cluster.mounted("n1");
    let again = VolumeId([9; 16]);
    let register = Command::RegisterVolume {
        volume: again,
        name: "vms".to_owned(),
        fence: FenceMethod::Lease,
        quiesce_ns: QUIESCE_NS,
        epoch_floor: Epoch(500),
    };
    let refusal = Refusal::VolumeName { name: "vms".to_owned(), volume: VOLUME };
    assert_eq!(cluster.refused(register.clone()), refusal);
    cluster.ask_done(client, Operation::Leave);
    cluster.done(register);
    let Answer::Volumes(volumes) = cluster.state.query(&Query::Volumes) else { panic!() };
    assert_eq!(volumes.iter().map(|info| info.volume).collect::<Vec<_>>(), [OTHER_VOLUME, again]);
    // No epoch is granted that the volume may have seen.
    let session = cluster.open("n2");
    let kind = ClientKind::Csvfs { volume: again };
    let client = cluster.join(session, kind);
    assert_eq!(cluster.acquire(client, &crate::ids::ResourceId::Coordinator(again)), Epoch(501));
}

#[test]
fn settings_have_their_ranges_and_a_lease_in_use_is_not_shortened() {
    let mut cluster = Cluster::new();
    let set = |lease_ns, grace_ns| Command::Configure(Settings { lease_ns, grace_ns });
    assert!(matches!(cluster.refused(set(1, 0)), Refusal::Setting { .. }));
    assert!(matches!(cluster.refused(set(SECOND_NS, u64::MAX)), Refusal::Setting { .. }));
    cluster.done(set(2 * SECOND_NS, SECOND_NS));
    let session = cluster.open("n1");
    assert_eq!(cluster.refused(set(SECOND_NS, SECOND_NS)), Refusal::LeaseInUse);
    cluster.done(set(3 * SECOND_NS, 0));
    cluster.end(session);
    cluster.done(set(SECOND_NS, SECOND_NS));
}

#[test]
fn bounds_are_kept_and_named() {
    let mut cluster = Cluster::new();
    let session = cluster.open("n1");
    for _ in 0..CLIENTS_PER_SESSION_MAX {
        let command = Command::AddClient { session, nonce: cluster.nonce(), kind: ClientKind::Tool, pid: 1 };
        let (reply, _) = cluster.state.apply(cluster.rules, 1, &command);
        assert!(matches!(reply, Reply::Client(_)), "{reply:?}");
    }
    let add = Command::AddClient { session, nonce: cluster.nonce(), kind: ClientKind::Tool, pid: 1 };
    let refusal = cluster.refused(add);
    assert_eq!(refusal, Refusal::Full(Bound::ClientsOfSession));
    assert!(refusal.to_string().contains("512 clients of one session"), "{refusal}");
    cluster.end(session);
    assert!(cluster.state.clients.is_empty(), "tools that hold nothing are gone at once");

    // Many nodes come and go; the oldest are forgotten, and sessions are bounded.
    let mut live = Vec::new();
    for n in 0..SESSIONS_MAX {
        let command = Command::OpenSession { node: node(&format!("m{n}")), nonce: cluster.nonce() };
        let (reply, _) = cluster.state.apply(cluster.rules, 1, &command);
        let Reply::Session(session) = reply else { panic!("{reply:?}") };
        live.push(session);
    }
    let open = Command::OpenSession { node: node("one-more"), nonce: cluster.nonce() };
    assert_eq!(cluster.refused(open.clone()), Refusal::Full(Bound::Sessions));
    cluster.end(live[5]);
    assert!(matches!(cluster.apply(&open), Reply::Session(_)));
}

#[test]
fn events_are_kept_in_a_window() {
    let mut cluster = Cluster::new();
    let (_, client) = cluster.mounted("n1");
    let events =
        |cluster: &Cluster, after| match cluster.state.query(&Query::Events { after: EventIndex(after) }) {
            Answer::Events { events, missed, last } => (events, missed, last.0),
            other => panic!("{other:?}"),
        };
    let (first, missed, last) = events(&cluster, 0);
    assert!(!missed && first.len() as u64 == last && first[0].index == EventIndex(1));
    for _ in 0..EVENTS_MAX {
        let acquire = cluster.command_in(client, 0, acquisition(&file(1)));
        let Reply::Acquired(HolderInfo { epoch, .. }) = cluster.state.apply(cluster.rules, 1, &acquire).0
        else {
            panic!("{acquire:?}")
        };
        let release = cluster.command_in(client, 0, Operation::Release { resource: file(1), epoch });
        cluster.state.apply(cluster.rules, 1, &release);
    }
    let (_, missed, end) = events(&cluster, last);
    assert!(missed, "whoever was away too long is told");
    assert_eq!(end, last + 2 * EVENTS_MAX as u64);
    let (recent, missed, _) = events(&cluster, end - 3);
    assert!(!missed && recent.len() == 3);
    assert!(events(&cluster, end + 1).1, "an index of a lost future");
    cluster.done(Command::Tick);
}
