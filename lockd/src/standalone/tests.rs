use proptest::prelude::*;

use super::*;
use crate::clock::{BootTime, ManualClock};
use crate::ids::VolumeId;
use crate::locks::{ByteRange, LockKind, LockMode, LockOwner, LockRequest};

const SESSION: SessionId = SessionId(40);

fn authority() -> Standalone {
    Standalone::new(SESSION, Arc::new(Lease::unlimited()), ClientId(7), Epoch(100))
}

fn file(ino: u64) -> ResourceId {
    ResourceId::File(VolumeId([1; 16]), ino)
}

#[test]
fn a_resource_has_one_holder_and_the_refusal_names_it() {
    let authority = authority();
    let (a, b) = (authority.add_client().unwrap(), authority.add_client().unwrap());
    assert_eq!((a, b), (ClientId(7), ClientId(8)));
    let holding = authority.acquire(&file(1), a).unwrap();
    assert_eq!(holding, Holding { session: SESSION, client: a, epoch: Epoch(100) });
    assert_eq!(authority.acquire(&file(1), a), Ok(holding), "asked again: the same holding");
    let refused = authority.acquire(&file(1), b).unwrap_err();
    assert_eq!(refused, AuthorityError::Held { resource: file(1), holding });
    assert!(refused.to_string().contains("held by c7 of session s40 since epoch e100"), "{refused}");
    assert_eq!(authority.holder(&file(1)), Some(holding));
    assert_eq!(authority.holder(&file(2)), None);
}

#[test]
fn epochs_rise_and_an_old_one_releases_nothing() {
    let authority = authority();
    let (a, b) = (authority.add_client().unwrap(), authority.add_client().unwrap());
    let old = authority.acquire(&file(1), a).unwrap();
    authority.release(&file(1), a, old.epoch).unwrap();
    let stale = AuthorityError::Stale { resource: file(1), epoch: old.epoch };
    assert_eq!(authority.release(&file(1), a, old.epoch), Err(stale.clone()));
    let new = authority.acquire(&file(1), a).unwrap();
    assert!(new.epoch > old.epoch);
    assert_eq!(authority.release(&file(1), a, old.epoch), Err(stale));
    let held = AuthorityError::Held { resource: file(1), holding: new };
    assert_eq!(authority.release(&file(1), b, new.epoch), Err(held));
    authority.release(&file(1), a, new.epoch).unwrap();
    assert!(authority.acquire(&file(1), b).unwrap().epoch > new.epoch);
}

#[test]
fn what_an_ended_client_held_is_free_and_it_gets_nothing_more() {
    let authority = authority();
    let (a, b) = (authority.add_client().unwrap(), authority.add_client().unwrap());
    authority.acquire(&file(1), a).unwrap();
    authority.acquire(&file(2), b).unwrap();
    let owner = LockOwner { client: a, kind: LockKind::Posix, id: 1 };
    let request = LockRequest { owner, pid: 1, mode: LockMode::Exclusive, range: ByteRange::WHOLE };
    authority.locks().set(1, request, false, Box::new(|reply| assert!(reply.is_ok())));
    authority.end_client(a);
    assert_eq!(authority.acquire(&file(3), a), Err(AuthorityError::ClientEnded(a)));
    assert!(authority.acquire(&file(1), b).is_ok());
    assert_eq!(authority.holdings().len(), 2);
    assert!(authority.locks().list().is_empty());
    assert_ne!(authority.add_client().unwrap(), a, "an id is never used again");
}

#[test]
fn an_ended_session_refuses_everything() {
    let clock = ManualClock::default();
    let lease = Arc::new(Lease::lapsed());
    lease.extend(BootTime(1_000));
    let authority = Standalone::new(SESSION, Arc::clone(&lease), ClientId(1), Epoch(1));
    assert!(lease.holds(&clock));
    let client = authority.add_client().unwrap();
    let holding = authority.acquire(&file(1), client).unwrap();
    authority.end_session();
    let ended = AuthorityError::SessionEnded(SESSION);
    assert!(!authority.lease().holds(&clock));
    assert_eq!(authority.holder(&file(1)), None);
    assert_eq!(authority.acquire(&file(1), client), Err(ended.clone()));
    assert_eq!(authority.release(&file(1), client, holding.epoch), Err(ended.clone()));
    assert_eq!(authority.add_client(), Err(ended));
}

#[test]
fn clients_are_bounded() {
    let authority = authority();
    let first = authority.add_client().unwrap();
    for _ in 1..CLIENTS_MAX {
        authority.add_client().unwrap();
    }
    let full = AuthorityError::Full { what: "clients", limit: CLIENTS_MAX };
    assert_eq!(authority.add_client(), Err(full));
    authority.end_client(first);
    authority.add_client().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn holdings_are_those_of_a_model(
        steps in prop::collection::vec((0_usize..3, 0_u64..4, 0_u8..8), 1..100),
    ) {
        let authority = authority();
        let mut clients: Vec<ClientId> = (0..3).map(|_| authority.add_client().unwrap()).collect();
        let mut held: BTreeMap<u64, (ClientId, Epoch)> = BTreeMap::new();
        let mut last = Epoch(99);
        for (which, ino, what) in steps {
            let client = clients[which];
            match what {
                0..4 => match authority.acquire(&file(ino), client) {
                    Ok(holding) => {
                        prop_assert_eq!(holding.client, client);
                        match held.insert(ino, (client, holding.epoch)) {
                            Some(before) => prop_assert_eq!(before, (client, holding.epoch)),
                            None => prop_assert!(holding.epoch > last),
                        }
                        last = last.max(holding.epoch);
                    }
                    Err(AuthorityError::Held { holding, .. }) => {
                        prop_assert_eq!(held[&ino], (holding.client, holding.epoch));
                        prop_assert_ne!(holding.client, client);
                    }
                    Err(error) => panic!("{error}"),
                },
                4..7 => {
                    let epoch = held.get(&ino).map_or(Epoch(1), |(_, epoch)| *epoch);
                    let released = authority.release(&file(ino), client, epoch).is_ok();
                    prop_assert_eq!(released, held.get(&ino).is_some_and(|(holder, _)| *holder == client));
                    if released {
                        held.remove(&ino);
                    }
                }
                _ => {
                    authority.end_client(client);
                    held.retain(|_, (holder, _)| *holder != client);
                    clients[which] = authority.add_client().unwrap();
                }
            }
            let listed: BTreeMap<ResourceId, (ClientId, Epoch)> =
                authority.holdings().into_iter().map(|(id, holding)| (id, (holding.client, holding.epoch))).collect();
            prop_assert_eq!(listed, held.iter().map(|(ino, held)| (file(*ino), *held)).collect());
        }
    }
}
