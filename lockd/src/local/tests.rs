//! Frames that are none, and processes that end.

use std::io::Cursor;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;

use super::frame::{self, FrameError};
use super::process::{Incarnation, Process};
use super::run_dir::{RunDir, RunDirError};

#[test]
fn the_greeting_is_these_bytes() {
    assert_eq!(&frame::greeting(), b"CSVLOCAL\x01\x00\x01\x00");
    assert!(matches!(frame::agree(*b"CSVLOCAL\x01\x00\x09\x00"), Ok(1)));
    assert!(matches!(frame::agree(*b"CSVLOCAL\x02\x00\x09\x00"), Err(FrameError::Version(2, 9))));
    assert!(matches!(frame::agree(*b"GET / HTTP/1"), Err(FrameError::NotOurs)));
}

#[test]
fn a_frame_comes_back_and_a_long_one_is_refused_unread() {
    let bytes = frame::encode(&(7_u64, "seven".to_owned())).expect("a short message");
    let body = frame::read(&mut Cursor::new(&bytes)).expect("whole");
    assert_eq!(frame::decode::<(u64, String)>(&body).expect("the message"), (7, "seven".to_owned()));
    assert!(matches!(frame::read(&mut Cursor::new(&bytes[..bytes.len() - 1])), Err(FrameError::Closed(_))));
    assert!(matches!(frame::read(&mut Cursor::new([0xff; 64])), Err(FrameError::TooLong(_))));
    assert!(matches!(frame::encode(&vec![0_u8; frame::FRAME_MAX + 1]), Err(FrameError::TooLong(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn any_bytes_are_a_message_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = frame::decode::<Vec<(u64, String)>>(&bytes);
        let _ = frame::read(&mut Cursor::new(&bytes));
    }
}

#[test]
fn the_peer_of_a_socket_is_known() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    let (process, credentials) = Process::of_peer(&one).expect("this process");
    assert_eq!(credentials.pid, std::process::id());
    assert_eq!(process.incarnation(), Incarnation::of(std::process::id()).expect("this process"));
    assert!(!process.has_ended());
}

#[tokio::test]
async fn the_end_of_a_process_is_noticed_and_its_id_is_not_taken_for_it() {
    let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep");
    let incarnation = Incarnation::of(child.id()).expect("it runs");
    let process = Process::open(incarnation).expect("a pidfd").expect("it runs");
    let earlier = Incarnation { start_ticks: incarnation.start_ticks - 1, ..incarnation };
    assert!(Process::open(earlier).expect("no error").is_none(), "another had the id before");
    assert!(tokio::time::timeout(Duration::from_millis(50), process.ended()).await.is_err(), "it lives");
    child.kill().expect("killed");
    // Dead is dead, whether or not its parent has looked.
    tokio::time::timeout(Duration::from_secs(10), process.ended()).await.expect("in time").expect("noticed");
    assert!(Process::open(incarnation).expect("no error").is_none());
    child.wait().expect("reaped");
    assert!(Process::open(incarnation).expect("no error").is_none());
    assert!(process.has_ended());
}

#[test]
fn a_run_directory_has_one_lockd() {
    let base = tempfile::tempdir().expect("a folder");
    let dir = RunDir::of(base.path(), "lab", "n1");
    let lock = dir.claim().expect("free");
    assert!(
        matches!(dir.claim(), Err(RunDirError::InUse { pid, .. }) if pid == std::process::id().to_string())
    );
    drop(lock);
    dir.claim().expect("free again");

    assert!(matches!(RunDir::find(base.path(), None, None), Err(RunDirError::Ambiguous { .. })));
    std::fs::write(dir.socket(), "").expect("a socket");
    assert_eq!(RunDir::find(base.path(), None, None).expect("the only one"), dir);
    let other = RunDir::of(base.path(), "lab", "n2");
    std::fs::create_dir_all(other.path()).expect("a second");
    std::fs::write(other.socket(), "").expect("a socket");
    assert!(RunDir::find(base.path(), None, None).is_err());
    assert_eq!(RunDir::find(base.path(), Some("lab"), Some("n2")).expect("named"), other);
    assert_eq!(RunDir::all(base.path()).len(), 2);
}
