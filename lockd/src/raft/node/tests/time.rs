//! The cluster's time when leaders and civil time change.

use std::time::Instant;

use super::cluster::{Cluster, name};

/// The time of the last command on `cluster`, once all voters have it.
async fn last_time(cluster: &Cluster, commands: usize) -> u64 {
    *cluster.agree(commands).await.times.last().unwrap()
}

fn assert_no_leap(earlier_ns: u64, later_ns: u64, since: Instant) {
    let passed = u64::try_from(since.elapsed().as_nanos()).unwrap();
    assert!(later_ns > earlier_ns);
    let told = later_ns - earlier_ns;
    assert!(told <= passed, "the cluster's time went on by {told} ns in {passed} ns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_a_new_leader_whose_civil_time_is_wrong_moves_time_no_faster_than_it_passes() {
    let mut cluster = Cluster::new(3).await;
    let since = Instant::now();
    cluster.propose("first").await;
    let mut commands = 1;
    let first_ns = last_time(&cluster, commands).await;
    for hours_off in [1, -1] {
        let leader = cluster.leader().await;
        cluster.hours_off = hours_off;
        for number in 1..=3 {
            if name(number) != leader {
                cluster.stop(&name(number)).await;
                cluster.start(&name(number)).await;
                cluster.agree(commands).await;
            }
        }
        cluster.stop(&leader).await;
        cluster.propose("of a leader whose civil time is wrong").await;
        commands += 1;
        assert_no_leap(first_ns, last_time(&cluster, commands).await, since);
        cluster.start(&leader).await;
        cluster.agree(commands).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l9_voters_that_were_all_down_go_on_from_the_last_time() {
    for voters in [1, 3] {
        let mut cluster = Cluster::tuned(voters, |config| {
            config.snapshot_entries = 4;
            config.keep_entries = 1;
        })
        .await;
        let mut commands = 0;
        for hours_off in [0, 24, -24] {
            let before = Instant::now();
            for _ in 0..3 {
                cluster.propose("x").await;
                commands += 1;
            }
            let time_ns = last_time(&cluster, commands).await;
            for number in 1..=voters {
                cluster.stop(&name(number)).await;
            }
            cluster.hours_off = hours_off;
            for number in 1..=voters {
                cluster.start(&name(number)).await;
            }
            cluster.propose("after all were down").await;
            commands += 1;
            assert_no_leap(time_ns, last_time(&cluster, commands).await, before);
        }
        cluster.end().await;
    }
}
