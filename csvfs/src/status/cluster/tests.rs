//! The table, from documents as lockd writes them.

use lockd::ids::{ClientId, Epoch, SessionId, VolumeId};
use lockd::machine::{FenceInfo, FenceMethod, HoldMode, HolderInfo, HolderState, Victim, VolumeInfo};
use serde_json::json;

use super::assemble::{Asked, Registered, assemble};
use super::lockd_document::Document;
use super::{ClusterVolume, NodeStatus};
use crate::status::VolumeStatus;

const VOLUME: VolumeId = VolumeId([7; 16]);

fn document(quorum: bool) -> Document {
    let client = |connected| json!({ "client": 4, "kind": "x", "volume": VOLUME.to_string(), "pid": 77, "connected": connected });
    let state = json!({ "sessions": [{ "session": 3, "node": "n4", "ended": { "ago_s": 12.2, "cause": "lapsed" } }] });
    let document = json!({
        "cluster": "lab", "asked": "n1", "quorum": quorum, "leader": "n2",
        "problem": if quorum { None } else { Some("2 of 3 voters do not answer") },
        "state": if quorum { state } else { json!(null) },
        "nodes": [
            { "node": "n1", "reachable": true, "clients": [client(true)], "trouble": null },
            { "node": "n2", "reachable": true, "clients": [client(false)] },
            { "node": "n3", "reachable": true, "clients": [] },
            { "node": "n4", "reachable": false, "address": "10.77.0.4:7400", "last_contact_s": 15.5, "trouble": "timed out" },
        ],
    });
    serde_json::from_value(document).unwrap()
}

fn mount(node: &str, state: &str) -> VolumeStatus {
    serde_json::from_value(json!({
        "volume": VOLUME.to_string(), "name": "vms", "lun": "lab/vms", "mountpoint": "/mnt", "cluster": "lab",
        "node": node, "pid": 7, "coordinator": "n1", "session": 3, "read_only": false, "state": state, "since_s": 4.0,
        "problem": "", "path": "file", "fence": "lease",
        "opening": { "how": "clean", "wait_s": 0.0, "open_s": 0.0, "copy_s": 0.0, "copied_bytes": 0.0, "warnings": [] },
        "counters": { "reads": 0, "writes": 0, "bytes_read": 0, "bytes_written": 0, "syncs": 0, "in_flight": 0 },
        "blocks": 1, "blocks_free": 1, "inodes": 1,
    }))
    .unwrap()
}

fn registered(coordinator: Option<&str>) -> VolumeInfo {
    let coordinator = coordinator.map(|node| HolderInfo {
        client: ClientId(4),
        session: SessionId(1),
        node: node.parse().unwrap(),
        mode: HoldMode::Exclusive,
        epoch: Epoch(9),
        since_ns: 1_000_000_000,
        pinned: false,
        state: HolderState::Live,
    });
    let (name, fence) = ("vms".to_owned(), FenceMethod::Lease);
    VolumeInfo { volume: VOLUME, name, fence, quiesce_ns: 0, coordinator, sessions: vec![] }
}

/// The state when it is five seconds old.
fn state(coordinator: Option<&str>, fences: Vec<FenceInfo>) -> Registered {
    Registered { volumes: vec![registered(coordinator)], fences, now_ns: 5_000_000_000 }
}

fn answered(node: &str, answer: Result<VolumeStatus, String>) -> Asked {
    Asked { node: node.to_owned(), volume: VOLUME.to_string(), answer }
}

fn node<'a>(volume: &'a ClusterVolume, name: &str) -> &'a NodeStatus {
    volume.nodes.iter().find(|node| node.node == name).unwrap()
}

#[test]
fn every_node_is_in_the_table_whether_it_answers_or_not() {
    let asked = [answered("n1", Ok(mount("n1", "direct")))];
    let known = ["vms".to_owned(), "scratch".to_owned()];
    let status = assemble(&document(true), Some(&state(Some("n1"), vec![])), &asked, &known);
    assert_eq!(status.volumes.len(), 2, "{status:#?}");
    let never = &status.volumes[0];
    assert_eq!((never.name.as_str(), &never.volume), ("scratch", &None));
    assert!(never.nodes.iter().all(|node| matches!(node.state.as_str(), "not mounted" | "unreachable")));
    let volume = &status.volumes[1];
    assert_eq!(volume.coordinator.as_deref(), Some("n1"));
    assert_eq!((volume.coordinator_epoch, volume.coordinator_since_s), (Some(9), Some(4.0)));
    assert!(volume.fence.contains("nothing stops"), "{}", volume.fence);
    let states: Vec<_> = volume.nodes.iter().map(|node| node.state.as_str()).collect();
    assert_eq!(states, ["direct", "silent", "not mounted", "unreachable"]);
    assert_eq!((node(volume, "n1").since_s, node(volume, "n4").since_s), (Some(4.0), Some(15.5)));
    assert!(node(volume, "n2").problem.contains("process 77"), "{volume:#?}");
    let gone = &node(volume, "n4").problem;
    assert!(gone.contains("10.77.0.4:7400") && gone.contains("session 3 ended 12 s ago"), "{gone}");
    assert_eq!(volume.problem, "");
}

#[test]
fn what_is_known_of_the_session_of_a_node_that_is_away_is_said() {
    let problem = |change: fn(&mut Document)| {
        let mut document = document(true);
        change(&mut document);
        let status = assemble(&document, Some(&state(Some("n1"), vec![])), &[], &[]);
        node(&status.volumes[0], "n4").problem.clone()
    };
    let ended = problem(|_| ());
    assert!(ended.contains("session 3 ended 12 s ago"), "{ended}");
    let lives = problem(|document| document.state.as_mut().unwrap().sessions[0].ended = None);
    assert!(lives.contains("lives still"), "{lives}");
    let fenced = problem(|document| document.state.as_mut().unwrap().sessions.clear());
    assert!(fenced.contains("it has no session"), "{fenced}");
    let unknown = problem(|document| document.state = None);
    assert!(!unknown.contains("session"), "{unknown}");
}

#[test]
fn a_coordinator_that_is_away_is_a_problem_of_the_volume() {
    let asked = [answered("n1", Err("no answer in time".to_owned()))];
    let status = assemble(&document(true), Some(&state(Some("n4"), vec![])), &asked, &[]);
    assert!(status.volumes[0].problem.contains("node n4"), "{status:#?}");
    assert!(node(&status.volumes[0], "n1").problem.contains("no answer in time"));
    let asked = [answered("n1", Ok(mount("n1", "direct")))];
    let status = assemble(&document(true), Some(&state(None, vec![])), &asked, &[]);
    assert!(status.volumes[0].problem.contains("nobody coordinates"), "{status:#?}");
}

#[test]
fn who_is_being_fenced_is_said_with_what_is_waited_for() {
    let fence = FenceInfo {
        volume: VOLUME,
        victim: Victim::Session(SessionId(3)),
        since_ns: 2_000_000_000,
        method: None,
        waiting: vec![SessionId(1)],
    };
    let reported = FenceInfo { method: Some(FenceMethod::Lease), ..fence.clone() };
    let elsewhere = FenceInfo { volume: VolumeId([8; 16]), ..fence.clone() };
    let status = assemble(&document(true), Some(&state(None, vec![fence, reported, elsewhere])), &[], &[]);
    let [first, second] = &status.volumes[0].fences[..] else { panic!("{status:#?}") };
    assert_eq!((first.victim.as_str(), first.since_s), ("node n4", 3.0));
    assert!(first.waits_for.contains("fence lease has not succeeded yet"), "{first:?}");
    assert!(second.waits_for.starts_with("session s1 to report"), "{second:?}");
}

#[test]
fn without_a_quorum_the_mounts_say_who_coordinates() {
    let asked = [answered("n1", Ok(mount("n1", "paused")))];
    let status = assemble(&document(false), None, &asked, &[]);
    assert!(!status.quorum && status.problem.contains("2 of 3 voters"), "{status:#?}");
    assert_eq!(status.volumes[0].coordinator.as_deref(), Some("n1"));
    assert_eq!(status.volumes[0].coordinator_since_s, None);
    assert_eq!(node(&status.volumes[0], "n1").state, "paused");
    let text = serde_json::to_value(&status).unwrap();
    assert_eq!(text["volumes"][0]["coordinator"], "n1");
}
