//! The requests of other voters.

use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::AppendEntriesResponse;

use super::StorageId;
use super::contacts::Contacts;
use super::network::lost_directory;
use super::types::Raft;
use super::wire::{Answer, Ask, Reply, Request};
use crate::ids::NodeName;

/// Answers request `frame` of node `from`.
pub(super) async fn serve(
    me: &NodeName,
    storage: StorageId,
    raft: &Raft,
    contacts: &Contacts,
    from: &NodeName,
    frame: &[u8],
) -> Vec<u8> {
    let answer = match Request::decode(frame) {
        Err(error) => Answer::Failed(error.to_string()),
        Ok(request) if !request.is_sane(from.id()) => {
            Answer::Failed("this request contradicts itself".to_owned())
        }
        Ok(request) => match request.expected {
            // Before openraft sees anything: a voter that has lost its directory neither votes nor acknowledges.
            Some(expected) if expected != storage => {
                let why = lost_directory(me, expected, storage);
                if contacts.refused(why.clone()) {
                    tracing::error!("{why}");
                }
                Answer::Refused(why)
            }
            _ => {
                contacts.asked(from.id());
                execute(raft, contacts, request).await
            }
        },
    };
    Reply { storage, answer }.encode()
}

async fn execute(raft: &Raft, contacts: &Contacts, request: Request) -> Answer {
    let quorum = request.quorum;
    match request.ask {
        Ask::Hello => match raft.is_initialized().await {
            Ok(initialized) => Answer::Hello { initialized },
            Err(error) => Answer::Failed(error.to_string()),
        },
        Ask::Append(append) => match raft.append_entries(append).await {
            Ok(response) => {
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    contacts.led(quorum);
                }
                Answer::Append(response)
            }
            Err(error) => Answer::Failed(error.to_string()),
        },
        Ask::Vote(vote) => match raft.vote(vote).await {
            Ok(response) => Answer::Vote(response),
            Err(error) => Answer::Failed(error.to_string()),
        },
        Ask::Snapshot(chunk) => match raft.install_snapshot(chunk).await {
            Ok(response) => {
                contacts.led(quorum);
                Answer::Snapshot(response.vote)
            }
            Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => Answer::Mismatch {
                expected: (mismatch.expect.id, mismatch.expect.offset),
                got: (mismatch.got.id, mismatch.got.offset),
            },
            Err(error) => Answer::Failed(error.to_string()),
        },
    }
}
