//! What voters send each other on [`Channel::Raft`](crate::peers::Channel::Raft).
//!
//! ```text
//! request  version u8, kind u8, storage id of the sender, storage id that the receiver should have (option),
//!          whether the sender leads with a quorum u8, body
//! reply    version u8, kind u8, storage id of the answering voter, body
//! ```
//!
//! Frames come from authenticated nodes; they are checked all the same, so that no bytes make a voter panic.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest, VoteResponse,
};

use super::StorageId;
use super::codec::{Decoder, Encoder, Malformed};
use super::types::{SnapshotMeta, TypeConfig, Vote};
use crate::ids::NodeId;

/// The version of these frames.
pub(super) const VERSION: u8 = 1;

/// The largest snapshot that is received, in bytes.
const SNAPSHOT_MAX: u64 = 1 << 30;

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) storage: StorageId,
    pub(super) expected: Option<StorageId>,
    pub(super) quorum: bool,
    pub(super) ask: Ask,
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Ask {
    /// Who are you, and do you belong to a cluster?
    Hello,
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<NodeId>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
}

/// A reply.
#[derive(PartialEq, Debug)]
pub(super) struct Reply {
    pub(super) storage: StorageId,
    pub(super) answer: Answer,
}

/// What is answered.
#[derive(PartialEq, Debug)]
pub(super) enum Answer {
    Hello {
        initialized: bool,
    },
    Append(AppendEntriesResponse<NodeId>),
    Vote(VoteResponse<NodeId>),
    Snapshot(Vote),
    /// The voter's directory is not the one that the cluster knows it by.
    Refused(String),
    /// The voter cannot answer: it has stopped, or the request is none.
    Failed(String),
    /// The chunk of a snapshot does not continue the last one: begin again at this offset.
    Mismatch {
        expected: (String, u64),
        got: (String, u64),
    },
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder(vec![VERSION]);
        encoder.u8(match &self.ask {
            Ask::Hello => 0,
            Ask::Append(_) => 1,
            Ask::Vote(_) => 2,
            Ask::Snapshot(_) => 3,
        });
        encoder.storage(self.storage);
        encoder.option(self.expected, Encoder::storage);
        encoder.u8(u8::from(self.quorum));
        match &self.ask {
            Ask::Hello => {}
            Ask::Append(append) => {
                encoder.vote(&append.vote);
                encoder.log_id_option(append.prev_log_id.as_ref());
                encoder.log_id_option(append.leader_commit.as_ref());
                encoder.u32(u32::try_from(append.entries.len()).unwrap_or(u32::MAX));
                append.entries.iter().for_each(|entry| encoder.entry(entry));
            }
            Ask::Vote(vote) => {
                encoder.vote(&vote.vote);
                encoder.log_id_option(vote.last_log_id.as_ref());
            }
            Ask::Snapshot(chunk) => {
                encoder.vote(&chunk.vote);
                encoder.log_id_option(chunk.meta.last_log_id.as_ref());
                encoder.stored_membership(&chunk.meta.last_membership);
                encoder.bytes(chunk.meta.snapshot_id.as_bytes());
                encoder.u64(chunk.offset);
                encoder.u8(u8::from(chunk.done));
                encoder.bytes(&chunk.data);
            }
        }
        encoder.0
    }

    pub(super) fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder(frame);
        if decoder.u8("frame")? != VERSION {
            return Err(Malformed("version of frames between voters"));
        }
        let kind = decoder.u8("frame")?;
        let storage = decoder.storage()?;
        let expected = decoder.option(Decoder::storage)?;
        let quorum = decoder.flag("frame")?;
        let ask = match kind {
            0 => Ask::Hello,
            1 => {
                let vote = decoder.vote()?;
                let (prev_log_id, leader_commit) = (decoder.log_id_option()?, decoder.log_id_option()?);
                let mut entries = Vec::new();
                for _ in 0..decoder.u32("entries")? {
                    entries.push(decoder.entry()?);
                }
                Ask::Append(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
            }
            2 => {
                let vote = decoder.vote()?;
                Ask::Vote(VoteRequest { vote, last_log_id: decoder.log_id_option()? })
            }
            3 => {
                let vote = decoder.vote()?;
                let meta = SnapshotMeta {
                    last_log_id: decoder.log_id_option()?,
                    last_membership: decoder.stored_membership()?,
                    snapshot_id: decoder.text("snapshot id")?,
                };
                let (offset, done) = (decoder.u64("chunk")?, decoder.flag("chunk")?);
                let data = decoder.bytes("chunk")?.to_vec();
                Ask::Snapshot(InstallSnapshotRequest { vote, meta, offset, data, done })
            }
            _ => return Err(Malformed("kind of request")),
        };
        decoder.end("request")?;
        Ok(Self { storage, expected, quorum, ask })
    }

    /// Whether openraft may be given this request of node `from`: it trusts its peers where it should not have to.
    pub(super) fn is_sane(&self, from: NodeId) -> bool {
        match &self.ask {
            Ask::Hello => true,
            Ask::Vote(vote) => vote.vote.leader_id.node_id == from && !vote.vote.committed,
            Ask::Snapshot(chunk) => {
                chunk.vote.leader_id.node_id == from && chunk.vote.committed && chunk.offset <= SNAPSHOT_MAX
            }
            Ask::Append(append) => {
                let mut last = append.prev_log_id;
                let consecutive = append.entries.iter().all(|entry| {
                    let next = last.map_or(0, |last| last.index.saturating_add(1));
                    let fits = entry.log_id.index == next && last.is_none_or(|last| last < entry.log_id);
                    last = Some(entry.log_id);
                    fits
                });
                consecutive && append.vote.leader_id.node_id == from && append.vote.committed
            }
        }
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder(vec![VERSION]);
        encoder.u8(match &self.answer {
            Answer::Hello { .. } => 0,
            Answer::Append(_) => 1,
            Answer::Vote(_) => 2,
            Answer::Snapshot(_) => 3,
            Answer::Refused(_) => 4,
            Answer::Failed(_) => 5,
            Answer::Mismatch { .. } => 6,
        });
        encoder.storage(self.storage);
        match &self.answer {
            Answer::Hello { initialized } => encoder.u8(u8::from(*initialized)),
            Answer::Append(AppendEntriesResponse::Success) => encoder.u8(0),
            Answer::Append(AppendEntriesResponse::PartialSuccess(upto)) => {
                encoder.u8(1);
                encoder.log_id_option(upto.as_ref());
            }
            Answer::Append(AppendEntriesResponse::Conflict) => encoder.u8(2),
            Answer::Append(AppendEntriesResponse::HigherVote(vote)) => {
                encoder.u8(3);
                encoder.vote(vote);
            }
            Answer::Vote(vote) => {
                encoder.vote(&vote.vote);
                encoder.u8(u8::from(vote.vote_granted));
                encoder.log_id_option(vote.last_log_id.as_ref());
            }
            Answer::Snapshot(vote) => encoder.vote(vote),
            Answer::Refused(why) | Answer::Failed(why) => encoder.bytes(why.as_bytes()),
            Answer::Mismatch { expected, got } => {
                for (id, offset) in [expected, got] {
                    encoder.bytes(id.as_bytes());
                    encoder.u64(*offset);
                }
            }
        }
        encoder.0
    }

    pub(super) fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder(frame);
        if decoder.u8("frame")? != VERSION {
            return Err(Malformed("version of frames between voters"));
        }
        let kind = decoder.u8("frame")?;
        let storage = decoder.storage()?;
        let answer = match kind {
            0 => Answer::Hello { initialized: decoder.flag("reply")? },
            1 => Answer::Append(match decoder.u8("reply")? {
                0 => AppendEntriesResponse::Success,
                1 => AppendEntriesResponse::PartialSuccess(decoder.log_id_option()?),
                2 => AppendEntriesResponse::Conflict,
                3 => AppendEntriesResponse::HigherVote(decoder.vote()?),
                _ => return Err(Malformed("reply")),
            }),
            2 => {
                let (vote, vote_granted) = (decoder.vote()?, decoder.flag("reply")?);
                Answer::Vote(VoteResponse { vote, vote_granted, last_log_id: decoder.log_id_option()? })
            }
            3 => Answer::Snapshot(decoder.vote()?),
            4 => Answer::Refused(decoder.text("reply")?),
            5 => Answer::Failed(decoder.text("reply")?),
            6 => {
                let expected = (decoder.text("reply")?, decoder.u64("reply")?);
                Answer::Mismatch { expected, got: (decoder.text("reply")?, decoder.u64("reply")?) }
            }
            _ => return Err(Malformed("kind of reply")),
        };
        decoder.end("reply")?;
        Ok(Self { storage, answer })
    }
}

#[cfg(test)]
mod tests;
