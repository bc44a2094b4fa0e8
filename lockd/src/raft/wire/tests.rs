use proptest::prelude::*;

use super::*;
use crate::raft::types::{Entry, LogId};

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(term, NodeId(5)), index)
}

fn append(entries: &[(u64, u64)]) -> Request {
    let entries =
        entries.iter().map(|(term, index)| Entry { log_id: log_id(*term, *index), ..Entry::default() });
    let append = AppendEntriesRequest {
        vote: Vote::new_committed(3, NodeId(5)),
        prev_log_id: Some(log_id(2, 7)),
        entries: entries.collect(),
        leader_commit: None,
    };
    request(Ask::Append(append))
}

fn request(ask: Ask) -> Request {
    Request { storage: StorageId([1; 16]), expected: Some(StorageId([2; 16])), quorum: true, ask }
}

#[test]
fn requests_come_back() {
    let chunk = InstallSnapshotRequest {
        vote: Vote::new_committed(3, NodeId(5)),
        meta: SnapshotMeta { snapshot_id: "3-5-9".to_owned(), ..SnapshotMeta::default() },
        offset: 17,
        data: vec![1, 2, 3],
        done: true,
    };
    let vote = VoteRequest { vote: Vote::new(4, NodeId(5)), last_log_id: Some(log_id(3, 9)) };
    for request in [
        append(&[(2, 8), (3, 9)]),
        request(Ask::Hello),
        request(Ask::Vote(vote)),
        request(Ask::Snapshot(chunk)),
    ] {
        let bytes = request.encode();
        let back = Request::decode(&bytes).unwrap();
        assert_eq!(format!("{back:?}"), format!("{request:?}"));
        assert!(back.is_sane(NodeId(5)));
        assert!((0..bytes.len()).all(|length| Request::decode(&bytes[..length]).is_err()));
    }
}

#[test]
fn what_openraft_would_trip_over_is_not_sane() {
    assert!(append(&[]).is_sane(NodeId(5)));
    assert!(!append(&[]).is_sane(NodeId(6)), "a leader speaks for itself");
    assert!(!append(&[(2, 9)]).is_sane(NodeId(5)), "a hole");
    assert!(!append(&[(2, 8), (1, 9)]).is_sane(NodeId(5)), "terms do not fall");
    let vote = VoteRequest { vote: Vote::new_committed(4, NodeId(5)), last_log_id: None };
    assert!(!request(Ask::Vote(vote)).is_sane(NodeId(5)));
}

#[test]
fn replies_come_back() {
    let vote = Vote::new(3, NodeId(5));
    let answers = [
        Answer::Hello { initialized: true },
        Answer::Append(AppendEntriesResponse::Success),
        Answer::Append(AppendEntriesResponse::PartialSuccess(Some(log_id(1, 2)))),
        Answer::Append(AppendEntriesResponse::Conflict),
        Answer::Append(AppendEntriesResponse::HigherVote(vote)),
        Answer::Vote(VoteResponse { vote, vote_granted: true, last_log_id: None }),
        Answer::Snapshot(vote),
        Answer::Refused("no".to_owned()),
        Answer::Failed("broken".to_owned()),
        Answer::Mismatch { expected: ("a".to_owned(), 1), got: ("b".to_owned(), 2) },
    ];
    for answer in answers {
        let reply = Reply { storage: StorageId([3; 16]), answer };
        assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..7_u8) {
        let mut frame = vec![VERSION, kind];
        frame.extend_from_slice(&[0; 18]);
        frame.extend_from_slice(&bytes);
        for frame in [&frame[..], &bytes[..]] {
            if let Ok(request) = Request::decode(frame) {
                request.is_sane(NodeId(0));
            }
            let _ = Reply::decode(frame);
        }
    }
}
