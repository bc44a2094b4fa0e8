//! What a mount says of itself in one word, and why: decided from what is seen. Pure.

use std::time::Duration;

/// What is seen of a mount.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Why the metadata cannot be changed any more.
    pub failure: Option<String>,
    /// The lease of the session.
    pub lease: LeaseSeen,
    /// The LUN.
    pub lun: LunSeen,
    /// The peer through which it is reached, and why no path of this node is used.
    pub redirected: Option<Redirected>,
    /// How long that has been so.
    pub lun_age: Option<Duration>,
    /// What the mount is in its cluster; none without one.
    pub member: Option<MemberSeen>,
    /// How long I/O waits for a LUN that is gone.
    pub hold: Duration,
}

/// The lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LeaseSeen {
    Holds,
    /// It ran out so long ago; it may come back (L2). Not known: it was never granted.
    Lapsed(Option<Duration>),
    /// The session is over.
    Ended,
}

/// Blocks go through a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Redirected {
    /// The peer's node.
    pub through: String,
    /// The paths of this node, each with what is wrong with it.
    pub why: String,
}

/// The LUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LunSeen {
    Works,
    /// It is connected, and a request is older than the path time-out.
    Overdue,
    Down,
    Closed,
}

/// A mount of a cluster.
#[derive(Clone, Debug)]
pub(super) struct MemberSeen {
    /// The node that coordinates the volume, when it is another one.
    pub coordinator: Option<String>,
    /// For how long it has not answered a question.
    pub silent: Option<Duration>,
    /// How many files the node owns.
    pub owned_files: u64,
}

/// One word, since when in seconds before now, and what is wrong with what to do about it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Condition {
    pub state: &'static str,
    pub since_s: Option<f64>,
    pub problem: String,
}

fn condition(state: &'static str, since: Option<Duration>, problem: String) -> Condition {
    Condition { state, since_s: since.map(|since| since.as_secs_f64()), problem }
}

/// The worst that is seen comes first.
pub(super) fn judge(seen: &Seen) -> Condition {
    if seen.lun == LunSeen::Closed {
        return condition("closed", None, String::new());
    }
    if let Some(cause) = &seen.failure {
        let problem = format!(
            "the metadata cannot be changed any more ({cause}); what was acknowledged is safe: unmount, and mount again \
             when the LUN is well"
        );
        return condition("failed", None, problem);
    }
    if seen.lease == LeaseSeen::Ended {
        let problem = if seen.member.is_some() {
            "this node's session has ended: the others have gone on without it, and nothing that it did not commit is \
             kept; unmount, and mount again"
        } else {
            "another mount has taken the volume over: nothing that was not committed is kept; unmount"
        };
        return condition("failed", None, problem.to_owned());
    }
    let guest = seen.member.as_ref().filter(|member| member.coordinator.is_some());
    match (seen.lun, guest) {
        (LunSeen::Down, Some(member)) if member.owned_files == 0 && member.silent.is_none() => {
            let problem = "no path to the LUN works from here: the other nodes serve all files, and none can be owned here; \
                           look after the server and the way to it"
                .to_owned();
            return condition("redirected (file)", seen.lun_age, problem);
        }
        (LunSeen::Down, guest) => {
            let which = if guest.is_some() { "I/O to the files that this node owns" } else { "I/O" };
            let problem = format!(
                "no path to the LUN works: {which} waits, goes on by itself when the LUN is back, and fails with EIO after \
                 {} s; look after the server and the way to it",
                seen.hold.as_secs()
            );
            return condition("paused", seen.lun_age, problem);
        }
        _ => {}
    }
    if let LeaseSeen::Lapsed(since) = seen.lease {
        let problem = match &seen.member {
            Some(_) => {
                "the lease of this node's session has run out and lockd has not won it back: I/O waits until it does; look \
                 at `lockctl status` whether lockd runs here and has a quorum"
            }
            None => {
                "the volume's claim could not be renewed in time because the LUN does not answer: I/O waits until it does; \
                 look after the server and the way to it"
            }
        };
        return condition("paused", since, problem.to_owned());
    }
    if seen.lun == LunSeen::Overdue {
        let problem = "the LUN is connected and does not answer in time: I/O waits until it does; look after the server";
        return condition("paused", seen.lun_age, problem.to_owned());
    }
    if let Some(MemberSeen { coordinator: Some(name), silent: Some(silent), owned_files }) = &seen.member {
        let own = if *owned_files > 0 {
            format!("; the {owned_files} files that this node owns go on")
        } else {
            String::new()
        };
        let problem = format!(
            "the coordinator on {name} does not answer: names, attributes and the files that it serves wait{own}; look at the \
             mount on {name}"
        );
        return condition("paused", Some(*silent), problem);
    }
    if let Some(Redirected { through, why }) = &seen.redirected {
        let problem = format!(
            "no path of this node leads to the LUN ({why}): its I/O goes through {through}, and goes directly again by itself \
             when a path has answered for a moment; look after the way from here to the server"
        );
        return condition("redirected (block)", seen.lun_age, problem);
    }
    condition("direct", seen.lun_age, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Seen {
        Seen {
            failure: None,
            lease: LeaseSeen::Holds,
            lun: LunSeen::Works,
            redirected: None,
            lun_age: Some(Duration::from_secs(9)),
            member: None,
            hold: Duration::from_secs(120),
        }
    }

    fn guest(owned_files: u64, silent: Option<Duration>) -> Option<MemberSeen> {
        Some(MemberSeen { coordinator: Some("n1".to_owned()), silent, owned_files })
    }

    fn state(seen: &Seen) -> (&'static str, Option<f64>) {
        let judged = judge(seen);
        assert_eq!(judged.problem.is_empty(), judged.state == "direct", "{judged:?}");
        (judged.state, judged.since_s)
    }

    #[test]
    fn a_lapsed_lease_is_a_pause_also_when_the_path_looks_well() {
        assert_eq!(state(&well()), ("direct", Some(9.0)));
        let lapsed = LeaseSeen::Lapsed(Some(Duration::from_secs(3)));
        assert_eq!(state(&Seen { lease: lapsed, ..well() }), ("paused", Some(3.0)));
        assert_eq!(state(&Seen { lease: lapsed, member: guest(0, None), ..well() }), ("paused", Some(3.0)));
        assert_eq!(state(&Seen { lease: LeaseSeen::Ended, ..well() }), ("failed", None));
        assert_eq!(state(&Seen { lun: LunSeen::Overdue, ..well() }), ("paused", Some(9.0)));
    }

    #[test]
    fn who_owns_nothing_is_redirected_when_its_path_is_down() {
        let down = Seen { lun: LunSeen::Down, ..well() };
        assert_eq!(state(&down), ("paused", Some(9.0)));
        assert_eq!(state(&Seen { member: guest(0, None), ..down.clone() }), ("redirected (file)", Some(9.0)));
        assert_eq!(state(&Seen { member: guest(2, None), ..down.clone() }), ("paused", Some(9.0)));
        let silent = guest(0, Some(Duration::from_secs(1)));
        assert_eq!(state(&Seen { member: silent, ..down }), ("paused", Some(9.0)));
    }

    #[test]
    fn who_goes_through_a_peer_says_through_whom_and_why() {
        let redirected =
            Some(Redirected { through: "n2".to_owned(), why: "nbd://san: no answer".to_owned() });
        let seen = Seen { redirected, member: guest(2, None), ..well() };
        assert_eq!(state(&seen), ("redirected (block)", Some(9.0)));
        let problem = judge(&seen).problem;
        assert!(problem.contains("through n2") && problem.contains("nbd://san: no answer"), "{problem}");
        assert_eq!(state(&Seen { lun: LunSeen::Overdue, ..seen }), ("paused", Some(9.0)));
    }

    #[test]
    fn a_coordinator_that_does_not_answer_is_named() {
        let seen = Seen { member: guest(2, Some(Duration::from_secs(4))), ..well() };
        assert_eq!(state(&seen), ("paused", Some(4.0)));
        let problem = judge(&seen).problem;
        assert!(problem.contains("coordinator on n1") && problem.contains("2 files"), "{problem}");
        assert_eq!(state(&Seen { failure: Some("EIO".to_owned()), ..seen }), ("failed", None));
    }
}
