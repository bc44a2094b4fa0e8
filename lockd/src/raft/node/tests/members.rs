//! Voters come, go, lag behind and lose their directories.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cluster::{Cluster, name, until};
use crate::ids::NodeName;
use crate::raft::{InitializeError, MembershipError, Quorum};

fn names(numbers: &[usize]) -> BTreeSet<NodeName> {
    numbers.iter().copied().map(name).collect()
}

async fn change(cluster: &Cluster, voters: &BTreeSet<NodeName>) {
    until("the voters are changed", || async {
        let leader = cluster.leader().await;
        cluster.node(&leader).change_voters(voters).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_shrinks_while_it_works() {
    let mut cluster = Cluster::new(1).await;
    cluster.propose("one").await;
    for number in 2..=5 {
        cluster.start(&name(number)).await;
    }
    change(&cluster, &names(&[1, 2, 3])).await;
    cluster.propose("three").await;
    change(&cluster, &names(&[1, 2, 3, 4, 5])).await;
    cluster.propose("five").await;
    // The first voter goes, although it may lead.
    change(&cluster, &names(&[2, 3, 4])).await;
    cluster.stop(&name(1)).await;
    cluster.stop(&name(5)).await;
    cluster.propose("other three").await;
    assert_eq!(cluster.agree(4).await.commands.len(), 4);
    let leader = cluster.leader().await;
    let status = cluster.node(&leader).status();
    assert_eq!(
        status.voters.iter().map(|voter| voter.node.clone()).collect::<BTreeSet<_>>(),
        names(&[2, 3, 4])
    );
    let refused = cluster.node(&leader).change_voters(&BTreeSet::new()).await;
    assert!(matches!(refused, Err(MembershipError::Count(0))), "{refused:?}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_catches_up_by_log_and_by_snapshot() {
    let mut cluster = Cluster::tuned(3, |config| {
        config.snapshot_entries = 50;
        config.keep_entries = 10;
    })
    .await;
    let leader = cluster.leader().await;
    let away = cluster.other(&[&leader]);
    cluster.propose("first").await;
    cluster.stop(&away).await;
    for number in 0..5 {
        cluster.propose(&format!("log {number}")).await;
    }
    cluster.start(&away).await;
    cluster.agree(6).await;

    cluster.stop(&away).await;
    for number in 0..200 {
        cluster.propose(&format!("snapshot {number}")).await;
    }
    let leader = cluster.leader().await;
    cluster.status_where(&leader, |status| status.purged > Some(100)).await;
    cluster.start(&away).await;
    let mut applications = cluster.node(&away).subscribe();
    cluster.agree(206).await;
    cluster.status_where(&away, |status| status.snapshot > Some(100)).await;
    let restored = until("a restoration is told", || {
        let told = applications.try_recv();
        async move { told.ok().filter(|told| matches!(**told, crate::raft::Application::Restored { .. })) }
    })
    .await;
    println!("{restored:?}");
    // And all of it comes back from the disk.
    cluster.stop(&away).await;
    cluster.start(&away).await;
    cluster.propose("last").await;
    assert_eq!(cluster.agree(207).await.commands.len(), 207);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_has_lost_its_directory_is_refused_until_it_rejoins() {
    let mut cluster = Cluster::new(3).await;
    cluster.propose("kept").await;
    let leader = cluster.leader().await;
    let lost = cluster.other(&[&leader]);
    let well = cluster.other(&[&leader, &lost]);
    cluster.stop(&lost).await;
    std::fs::remove_dir_all(cluster.dir.path().join(lost.as_str())).unwrap();
    cluster.start(&lost).await;
    // It is started as always, and does not begin a cluster of its own.
    cluster.node(&lost).initialize(&names(&[1, 2, 3])).await.unwrap();
    let status = cluster.status_where(&lost, |status| status.trouble.is_some()).await;
    assert!(status.trouble.unwrap().contains("rejoin"), "{:?}", status.voters);
    assert!(!status.initialized);
    cluster
        .status_where(&leader, |status| {
            let seen = status.voters.iter().find(|voter| voter.node == lost).unwrap();
            seen.trouble.as_ref().is_some_and(|trouble| trouble.contains("is refused"))
        })
        .await;

    // It does not count: with the other follower gone there is no majority.
    cluster.network.isolate(&well);
    cluster.status_where(&leader, |status| matches!(status.quorum, Quorum::No(_))).await;
    assert!(cluster.node(&leader).confirm_leader().await.is_err());
    cluster.network.heal_all();
    cluster.leader().await;

    until("it has rejoined", || async {
        let leader = cluster.leader().await;
        cluster.node(&leader).rejoin(&lost).await.inspect_err(|error| println!("{error}")).ok()
    })
    .await;
    cluster.status_where(&lost, |status| status.trouble.is_none()).await;
    cluster.propose("after").await;
    assert_eq!(cluster.agree(2).await.commands, [b"kept".to_vec(), b"after".to_vec()]);
    let leader = cluster.leader().await;
    if leader != lost {
        let again = cluster.node(&leader).rejoin(&lost).await;
        assert!(matches!(again, Err(MembershipError::CannotRejoin { .. })), "{again:?}");
    }
    // And now it counts.
    let well = cluster.other(&[&leader, &lost]);
    cluster.network.isolate(&well);
    cluster.propose("with its vote").await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_begins_when_all_voters_have_been_reached() {
    let dir = tempfile::tempdir().unwrap();
    let network = crate::peers::local::LocalNetwork::new(1);
    let mut cluster = Cluster { network, nodes: Default::default(), dir, tune: |_| {}, hours_off: 0 };
    cluster.start(&name(1)).await;
    cluster.start(&name(2)).await;
    let waiting = cluster.node(&name(1)).initialize(&names(&[1, 2, 3])).await;
    let Err(InitializeError::Waiting(missing)) = waiting else { panic!("{waiting:?}") };
    assert!(missing[0].contains("n3"), "{missing:?}");
    let outsider = cluster.node(&name(1)).initialize(&names(&[2, 3])).await;
    assert_eq!(outsider, Err(InitializeError::NotAVoter(name(1))));
    assert!(matches!(cluster.node(&name(1)).status().quorum, Quorum::Unknown));
    cluster.start(&name(3)).await;
    // All at once, and again.
    cluster.initialize(3).await;
    cluster.initialize(3).await;
    cluster.propose("begun").await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    cluster.agree(1).await;
    cluster.end().await;
}
