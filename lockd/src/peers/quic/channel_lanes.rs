//! Which of a connection's streams a request takes.
//!
//! A connection has several long-lived streams, lanes, for each channel, opened at first use: a lost packet holds up one
//! lane only, and no channel waits behind another one. Of the channels that carry the cluster's decisions, one lane is
//! for small frames, so that a heartbeat does not wait behind a snapshot.

use crate::peers::Channel;

/// How many lanes all channels have together.
pub(super) const LANES: u32 = 24;
const LARGE: usize = 16 << 10;

/// How many lanes a channel has.
pub(super) const fn lanes(channel: Channel) -> usize {
    match channel {
        Channel::Raft | Channel::Control => 2,
        Channel::File | Channel::Block => 8,
        Channel::Migrate => 4,
    }
}

/// The lane of a request, by its number and its size in bytes.
pub(super) fn lane(channel: Channel, id: u64, length: usize) -> usize {
    match channel {
        Channel::Raft | Channel::Control => usize::from(length > LARGE),
        Channel::File | Channel::Block | Channel::Migrate => {
            usize::try_from(id % lanes(channel) as u64).unwrap_or(0)
        }
    }
}

/// The place of a channel in a list of all.
pub(super) fn place(channel: Channel) -> usize {
    usize::from(channel.byte()) - 1
}

/// Who goes first when there is more to send than fits: higher first.
pub(super) fn priority(channel: Channel) -> i32 {
    match channel {
        Channel::Raft | Channel::Control => 1,
        Channel::File | Channel::Block | Channel::Migrate => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_has_a_lane_and_all_lanes_fit() {
        let total: usize = Channel::ALL.into_iter().map(lanes).sum();
        assert_eq!(total, LANES as usize);
        for (at, channel) in Channel::ALL.into_iter().enumerate() {
            assert_eq!(place(channel), at);
            for id in 0..20 {
                assert!(lane(channel, id, 100) < lanes(channel));
                assert!(lane(channel, id, 1 << 20) < lanes(channel));
            }
        }
        assert_ne!(lane(Channel::Raft, 1, 100), lane(Channel::Raft, 2, 1 << 20));
    }
}
