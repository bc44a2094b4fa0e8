//! The claims of a cluster's members.

use std::sync::Arc;
use std::time::Duration;

use lockd::lease::Lease;
use redirector::lun::Lun;

use super::*;
use crate::disk::claim::{Claim, ClusterMark};
use crate::disk::contest::{ContestError, Identity};
use crate::disk::member::{MemberClaim, MemberOptions};
use crate::disk::survey::Survey;

fn mark(name: &str) -> Option<ClusterMark> {
    let mut id = [0; 16];
    id[..name.len()].copy_from_slice(name.as_bytes());
    Some(ClusterMark { id, name: name.to_owned() })
}

fn open_for(
    lun: &BenchLun,
    client: u64,
    cluster: Option<ClusterMark>,
    clock: &BenchClock,
) -> Result<OpenVolume, OpenError> {
    let mut options = options(client, clock);
    options.who.cluster = cluster;
    open(lun.wire() as Arc<dyn Lun>, options)
}

fn join(
    lun: &BenchLun,
    client: u64,
    host: &str,
    clock: &BenchClock,
) -> (Result<MemberClaim, ContestError>, Arc<Lease>) {
    let who = Identity { client: ClientId(client), host: host.to_owned(), pid: 77, cluster: mark("one") };
    let rules = Rules::from_test_environment();
    let clock = Arc::new(clock.clone());
    let options =
        MemberOptions { who, window: None, clock, rules, pool: redirector::buffer::Pool::default() };
    let lease = Arc::new(Lease::lapsed());
    (MemberClaim::claim(&(lun.wire() as Arc<dyn Lun>), &options, &lease), lease)
}

fn open_claims(lun: &BenchLun) -> Vec<Claim> {
    let survey = Survey::read(lun.wire().as_ref()).unwrap();
    survey.open_claims().map(|(_, claim)| claim.clone()).collect()
}

#[test]
fn v1_a_member_keeps_others_out_when_the_one_who_has_the_store_is_dead() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let first = open_for(&lun, 1, mark("one"), &clock).unwrap();
    let (member, lease) = join(&lun, 2, "guest", &clock);
    let member = Arc::new(member.unwrap());
    assert!(lease.holds(&clock));
    first.hold.beat().unwrap();
    drop(first);
    let beating = Arc::clone(&member);
    clock.on_sleep(move || beating.beat().unwrap());
    for (client, cluster) in [(3, None), (4, mark("two")), (5, mark("on"))] {
        let error = open_for(&lun, client, cluster, &clock).unwrap_err().to_string();
        assert!(error.contains("guest") && error.contains("\"one\""), "{error}");
    }
    // The cluster itself takes it over, and neither minds the other.
    let next = open_for(&lun, 6, mark("one"), &clock).unwrap();
    for _ in 0..3 {
        clock.advance(Duration::from_secs(20));
        member.beat().unwrap();
        next.hold.beat().unwrap();
    }
    next.close().unwrap();
    assert!(lease.holds(&clock));
    // It has closed the volume well; the member is there still.
    let error = open_for(&lun, 7, None, &clock).unwrap_err().to_string();
    assert!(error.contains("guest"), "{error}");
    clock.on_sleep(|| ());
    let Ok(member) = Arc::try_unwrap(member) else { panic!("still used") };
    member.close().unwrap();
    assert_eq!(open_claims(&lun), []);
    clock.on_sleep(|| panic!("a wait for nothing"));
    open_for(&lun, 8, None, &clock).unwrap().close().unwrap();
}

#[test]
fn v1_a_member_that_was_away_writes_nothing_when_others_have_the_volume() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let first = open_for(&lun, 1, mark("one"), &clock).unwrap();
    let (member, lease) = join(&lun, 2, "guest", &clock);
    let member = member.unwrap();
    // All of the cluster is stopped; somebody else watches, and takes over.
    let second = open_for(&lun, 3, mark("two"), &clock).unwrap();
    assert!(!lease.holds(&clock), "its lease has run out long before");
    assert!(member.beat().is_err(), "it goes on beside {}", second.hold.claim());
    assert!(member.fenced().is_some_and(|why| why.contains("\"two\"")), "{:?}", member.fenced());
    assert!(lease.has_ended());
    assert!(first.hold.beat().is_err());
    drop((member, first));
    // Nor does it come back while the other has it.
    let (refused, lease) = join(&lun, 4, "guest", &clock);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("host3") && error.contains("\"two\""), "{error}");
    assert!(!lease.holds(&clock));
    second.hold.beat().unwrap();
    second.close().unwrap();
}

#[test]
fn members_that_died_leave_one_claim_for_each_node() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let volume = open_for(&lun, 1, mark("one"), &clock).unwrap();
    for round in 0..100 {
        for host in ["a", "b"] {
            let client = 100 + 2 * round + u64::from(host == "b");
            // Never closed.
            drop(join(&lun, client, host, &clock).0.unwrap());
        }
    }
    assert_eq!(open_claims(&lun).len(), 3);
    volume.hold.beat().unwrap();
    volume.close().unwrap();
}

#[test]
fn an_opening_warns_of_the_claims_of_dead_members_and_not_of_the_living() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let first = open_for(&lun, 1, mark("one"), &clock).unwrap();
    let (living, _) = join(&lun, 2, "guest", &clock);
    let living = living.unwrap();
    let (dead, _) = join(&lun, 3, "gone", &clock);
    drop(dead.unwrap());
    first.close().unwrap();
    // The role goes from one mount to the next, each of which opens and closes the store.
    open_for(&lun, 4, mark("one"), &clock).unwrap().close().unwrap();
    let mut options = options(5, &clock);
    options.who.cluster = mark("one");
    // The dead one was on the node that opens: the mount that lives there is another.
    options.who.host = "gone".to_owned();
    options.living_nodes = ["guest".to_owned(), "gone".to_owned()].into();
    let next = open(lun.wire() as Arc<dyn Lun>, options.clone()).unwrap();
    let [warning] = &next.warnings[..] else { panic!("{:?}", next.warnings) };
    assert!(warning.contains("never closed") && warning.contains("gone"), "{warning}");
    next.close().unwrap();
    // To another cluster the node's name says nothing; it finds that neither beats.
    options.who = Identity { client: ClientId(6), cluster: mark("two"), ..options.who };
    let other = open(lun.wire() as Arc<dyn Lun>, options).unwrap();
    assert_eq!(other.warnings.len(), 2, "{:?}", other.warnings);
    other.close().unwrap();
    drop(living);
}
