//! Leaders come, go and are cut off.

use std::time::{Duration, Instant};

use super::cluster::{Cluster, name, until};
use crate::raft::{ProposeError, Quorum, Role};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_is_a_cluster() {
    let mut cluster = Cluster::new(1).await;
    assert_eq!(cluster.propose("a").await.number, 1);
    assert_eq!(cluster.propose("b").await.reply, b"2");
    cluster.stop(&name(1)).await;
    cluster.start(&name(1)).await;
    assert_eq!(cluster.propose("c").await.number, 3);
    let read = cluster.node(&name(1)).read(|ledger| ledger.commands.clone()).await.unwrap();
    assert_eq!(read, [b"a", b"b", b"c"]);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_reach_all_voters_in_one_order() {
    for voters in [3, 5] {
        let cluster = Cluster::new(voters).await;
        let leader = cluster.leader().await;
        let node = cluster.node(&leader).clone();
        let mut applications = node.subscribe();
        let tasks: Vec<_> = (0..100)
            .map(|number: u32| {
                let node = node.clone();
                tokio::spawn(async move { node.propose(number.to_le_bytes().to_vec()).await })
            })
            .collect();
        let mut numbers = Vec::new();
        for task in tasks {
            numbers.push(task.await.unwrap().unwrap().number);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=100).collect::<Vec<_>>());
        cluster.agree(100).await;
        for expected in 1..=100 {
            let application = applications.recv().await.unwrap();
            let crate::raft::Application::Applied { number, output, .. } = &*application else {
                panic!("{application:?}")
            };
            assert_eq!((*number, &output.events), (expected, &vec![format!("applied {expected}")]));
        }
        let follower = cluster.other(&[&leader]);
        let refused = cluster.node(&follower).propose(b"x".to_vec()).await;
        assert_eq!(refused, Err(ProposeError::NotLeader(Some(leader))));
        cluster.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_soon() {
    let mut cluster = Cluster::new(3).await;
    cluster.propose("before").await;
    let leader = cluster.leader().await;
    // As kill -9 does: nobody is told.
    cluster.network.isolate(&leader);
    let killed = Instant::now();
    let node = cluster.nodes.remove(&leader).unwrap();
    cluster.propose("after").await;
    let gap = killed.elapsed();
    println!("next successful command after {gap:?}");
    assert!(gap < Duration::from_secs(4), "{gap:?}");
    cluster.network.stop(&leader);
    node.shutdown().await;
    drop(node);
    cluster.network.heal_all();
    cluster.start(&leader).await;
    assert_eq!(cluster.agree(2).await.commands, [b"before".to_vec(), b"after".to_vec()]);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_says_that_there_is_no_quorum() {
    let cluster = Cluster::tuned(5, |config| config.patience = Duration::from_secs(1)).await;
    cluster.propose("before").await;
    let old = cluster.leader().await;
    let companion = cluster.other(&[&old]);
    for number in 1..=5 {
        let other = name(number);
        if other != old && other != companion {
            cluster.network.cut(&old, &other);
            cluster.network.cut(&companion, &other);
        }
    }
    // The old leader may have a command on its way, but never answers it.
    let outcome = cluster.node(&old).propose(b"lost".to_vec()).await;
    assert!(
        matches!(outcome, Err(ProposeError::Unknown { .. } | ProposeError::NoQuorum { .. })),
        "{outcome:?}"
    );
    cluster.status_where(&old, |status| matches!(status.quorum, Quorum::No(_))).await;
    cluster.status_where(&companion, |status| matches!(status.quorum, Quorum::No(_))).await;
    let refused = cluster.node(&old).propose(b"refused".to_vec()).await.unwrap_err();
    assert!(matches!(refused, ProposeError::NoQuorum { .. }), "{refused}");
    assert!(refused.was_surely_not_applied());
    assert!(cluster.node(&old).read(|_| ()).await.is_err());

    let new = until("a leader of the majority", || async {
        let majority = cluster.nodes.values().filter(|node| *node.node() != old && *node.node() != companion);
        for node in majority {
            if node.confirm_leader().await.is_ok() {
                return Some(node.clone());
            }
        }
        None
    })
    .await;
    new.propose(b"after".to_vec()).await.unwrap();
    assert!(matches!(new.status().quorum, Quorum::Yes(_)));
    cluster.network.heal_all();
    let agreed = cluster.agree(2).await;
    assert_eq!(
        agreed.commands,
        [b"before".to_vec(), b"after".to_vec()],
        "what was not answered is not there"
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_decided_without_a_majority() {
    let mut cluster = Cluster::tuned(3, |config| config.patience = Duration::from_secs(1)).await;
    cluster.propose("before").await;
    let leader = cluster.leader().await;
    for number in 1..=3 {
        if name(number) != leader {
            cluster.stop(&name(number)).await;
        }
    }
    let outcome = cluster.node(&leader).propose(b"maybe".to_vec()).await;
    assert!(
        matches!(outcome, Err(ProposeError::Unknown { .. } | ProposeError::NoQuorum { .. })),
        "{outcome:?}"
    );
    let status = cluster.status_where(&leader, |status| matches!(status.quorum, Quorum::No(_))).await;
    assert!(status.voters.iter().any(|voter| voter.trouble.is_some()), "{status:?}");
    for number in 1..=3 {
        if name(number) != leader {
            cluster.start(&name(number)).await;
        }
    }
    cluster.propose("after").await;
    let commands = cluster.agree(2).await.commands;
    assert_eq!(
        (commands.first().unwrap(), commands.last().unwrap()),
        (&b"before".to_vec(), &b"after".to_vec())
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_of_garbage_is_answered() {
    let cluster = Cluster::new(1).await;
    let node = cluster.node(&name(1));
    for length in 0..200_usize {
        let frame: Vec<u8> = (0..length).map(|at| u8::try_from(at * 37 % 256).unwrap() & 3).collect();
        node.serve(&name(2), frame).await;
    }
    assert_eq!(node.status().role, Role::Leader);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_too_large_is_refused() {
    let cluster = Cluster::new(1).await;
    let refused = cluster.node(&name(1)).propose(vec![0; 5 << 20]).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
    let large = cluster.node(&name(1)).propose(vec![0; 4 << 20]).await.unwrap();
    assert_eq!(large.number, 1);
    cluster.end().await;
}
