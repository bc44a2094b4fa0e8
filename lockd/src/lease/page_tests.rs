//! The shared page, seen by the lockd that writes it and by clients that map it.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock::{ManualClock, WallTime};
use crate::ids::SessionId;

const BOOT: BootId = BootId([7; 16]);

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for the page")
}

#[test]
fn l3_a_mapped_lease_ends_at_its_deadline_for_every_process() {
    let rules = Rules::from_test_environment();
    let clock = ManualClock::new(BootTime(5_000), WallTime(0));
    let folder = folder();
    let path = folder.path().join("lease");
    let page = LeasePage::open(&path, BOOT).expect("a new page");
    let (line, lease) = page.begin(SessionId(3));
    let view = LeasePage::view(&path, BOOT, SessionId(3), line).expect("a client's view");
    assert!(!view.admits(rules, &clock), "not granted yet");
    lease.extend(clock.boot().after(Duration::from_secs(8)));
    assert!(view.admits(rules, &clock));
    clock.advance(Duration::from_secs(8));
    assert!(!view.admits(rules, &clock), "lockd did not extend it");
    view.extend(clock.boot().after(Duration::from_secs(8)));
    assert!(!view.admits(rules, &clock), "only lockd extends it");
    lease.extend(clock.boot().after(Duration::from_secs(8)));
    assert!(view.admits(rules, &clock), "lapsed is not ended");
    lease.end();
    lease.extend(clock.boot().after(Duration::from_secs(80)));
    assert!(!view.admits(rules, &clock), "ended is");
}

#[test]
fn a_lockd_that_is_started_again_goes_on_in_the_page_under_its_clients() {
    let clock = ManualClock::default();
    let folder = folder();
    let path = folder.path().join("lease");
    let (line, lease) = LeasePage::open(&path, BOOT).expect("a new page").begin(SessionId(3));
    lease.extend(BootTime(100));
    let view = LeasePage::view(&path, BOOT, SessionId(3), line).expect("a view");
    drop(lease);
    let again = LeasePage::open(&path, BOOT).expect("the same page");
    assert!(view.holds(&clock), "the lease runs on while there is no lockd");
    let (same, lease) = again.begin(SessionId(3));
    assert_eq!(same, line);
    lease.extend(BootTime(200));
    assert_eq!(view.deadline(), BootTime(200));
    let (other, _lease) = again.begin(SessionId(4));
    assert_ne!(other, line);
    assert!(view.has_ended(), "its session is not the lockd's any more");
}

#[test]
fn a_line_that_changes_hands_is_over_for_those_who_had_it() {
    let folder = folder();
    let path = folder.path().join("lease");
    let page = LeasePage::open(&path, BOOT).expect("a new page");
    let (line, _) = page.begin(SessionId(1));
    let view = LeasePage::view(&path, BOOT, SessionId(1), line).expect("a view");
    for session in 2..200 {
        let (_, lease) = page.begin(SessionId(session));
        lease.extend(BootTime(u64::MAX - 1));
        assert!(view.has_ended());
    }
    assert!(LeasePage::view(&path, BOOT, SessionId(1), line).is_err());
}

#[test]
fn a_page_of_an_earlier_boot_is_replaced_and_one_of_another_kind_is_not() {
    let folder = folder();
    let path = folder.path().join("lease");
    let (line, _) = LeasePage::open(&path, BOOT).expect("a new page").begin(SessionId(3));
    let later = BootId([8; 16]);
    assert!(LeasePage::view(&path, later, SessionId(3), line).is_err());
    LeasePage::open(&path, later).expect("it is replaced");
    assert!(LeasePage::view(&path, later, SessionId(3), line).is_err(), "it has no sessions yet");

    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the page");
    file.write_all_at(&[9], 8).expect("another version");
    let error = LeasePage::open(&path, later).expect_err("damaged");
    assert!(error.to_string().contains("damaged"), "{error}");
    std::fs::write(&path, b"short").expect("overwritten");
    assert!(LeasePage::open(&path, later).is_err());
}

#[test]
fn the_header_is_these_bytes() {
    let mut expected = [0; header::HEADER_BYTES];
    expected[..8].copy_from_slice(b"CSVLEASE");
    expected[8] = 1;
    expected[12] = 64;
    expected[16..32].copy_from_slice(&[7; 16]);
    let crc = crc32fast::hash(&expected[..60]);
    expected[60..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(header::encode(BOOT, 64), expected);
    assert_eq!(header::check(&expected, BOOT, 64), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_damaged_header_is_taken_for_a_page(at in 0_usize..60, bit in 0_u8..8) {
        let mut bytes = header::encode(BOOT, 64);
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(header::check(&bytes, BOOT, 64), Err(HeaderError::NotAPage));
    }
}
