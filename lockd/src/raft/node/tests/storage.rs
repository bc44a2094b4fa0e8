//! Disks that fail, and a voter that is killed for real.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::cluster::{Cluster, Ledger, name, until};
use crate::clock::SystemClock;
use crate::raft::disk::faulty::FaultyDisk;
use crate::raft::{ProposeError, RaftConfig, RaftNode, Role, StartError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_disk_is_full_steps_aside() {
    let network = crate::peers::local::LocalNetwork::new(1);
    let disk = FaultyDisk::default();
    let config = RaftConfig::new(name(1), "unused".into());
    let peers = network.peers(&name(1));
    let node =
        RaftNode::start_on(Arc::new(disk.clone()), config, Ledger::default(), peers, Arc::new(SystemClock))
            .await
            .unwrap();
    node.initialize(&[name(1)].into()).await.unwrap();
    until("it leads", || async { node.propose(b"kept".to_vec()).await.ok() }).await;
    disk.fail(std::io::ErrorKind::StorageFull);
    let refused = node.propose(b"lost".to_vec()).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Stopped(_) | ProposeError::Unknown { .. }), "{refused}");
    let status = until("it has stopped", || async {
        let status = node.status();
        (status.role == Role::Stopped).then_some(status)
    })
    .await;
    assert!(status.trouble.unwrap().contains("free space"));
    assert!(matches!(node.propose(b"more".to_vec()).await, Err(ProposeError::Stopped(_))));
    assert!(node.confirm_leader().await.is_err());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_voters_do_not_share_a_directory() {
    let cluster = Cluster::new(1).await;
    let peers = cluster.network.peers(&name(1));
    let config = cluster.config(&name(1));
    let second = RaftNode::start(config, Ledger::default(), peers.clone(), Arc::new(SystemClock)).await;
    assert!(matches!(second, Err(StartError::InUse { .. })), "{second:?}");
    let dir = cluster.dir.path().join("n1");
    // The directory of another node, even when nobody uses it.
    let mut cluster = cluster;
    cluster.stop(&name(1)).await;
    let config = RaftConfig::new(name(2), dir);
    let foreign = RaftNode::start(config, Ledger::default(), peers, Arc::new(SystemClock)).await;
    assert!(matches!(foreign, Err(StartError::Foreign { .. })), "{foreign:?}");
    cluster.end().await;
}

const CHILD: &str = "RAFT_TEST_CHILD_DIR";

/// Not a test: the process that [`a_voter_that_is_killed_keeps_what_it_acknowledged`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let network = crate::peers::local::LocalNetwork::new(1);
    let mut config = RaftConfig::new(name(1), dir.into());
    config.snapshot_entries = 100;
    config.keep_entries = 10;
    let peers = network.peers(&name(1));
    let node = RaftNode::start(config, Ledger::default(), peers, Arc::new(SystemClock)).await.unwrap();
    node.initialize(&[name(1)].into()).await.unwrap();
    until("it leads", || async { node.confirm_leader().await.ok() }).await;
    loop {
        let number = node.peek(|ledger| ledger.commands.len());
        let proposed = node.propose(number.to_string().into_bytes()).await.unwrap();
        println!("\nacknowledged {}", proposed.number);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_killed_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "raft::node::tests::storage::child_that_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let enough = acknowledged + 100 + round * 37;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(number) = line.unwrap().strip_prefix("acknowledged ") {
                acknowledged = number.parse().unwrap();
            }
            if acknowledged >= enough {
                break;
            }
        }
        // SIGKILL, in the middle of whatever it does.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(acknowledged >= enough, "the child ended by itself");
    }
    let network = crate::peers::local::LocalNetwork::new(1);
    let config = RaftConfig::new(name(1), dir.path().to_owned());
    let node = RaftNode::start(config, Ledger::default(), network.peers(&name(1)), Arc::new(SystemClock))
        .await
        .unwrap();
    let ledger = until("it leads", || async { node.read(Ledger::clone).await.ok() }).await;
    assert!(ledger.commands.len() as u64 >= acknowledged, "{} of {acknowledged}", ledger.commands.len());
    for (number, command) in ledger.commands.iter().enumerate() {
        assert_eq!(command, number.to_string().as_bytes());
    }
    node.shutdown().await;
}
