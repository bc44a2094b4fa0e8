//! The named rules that a voter keeps.

use std::time::Duration;

use super::cluster::{Cluster, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_a_leader_that_is_cut_off_does_not_confirm() {
    let cluster = Cluster::tuned(3, |config| config.patience = Duration::from_secs(1)).await;
    let old = cluster.leader().await;
    cluster.node(&old).confirm_leader().await.unwrap();
    cluster.network.isolate(&old);
    // At once, while nobody else leads yet and the old leader has heard of nothing.
    assert!(cluster.node(&old).leadership().here);
    let kept_alive = cluster.node(&old).confirm_leader().await;
    assert!(kept_alive.is_err(), "a cut-off leader answered a keep-alive");
    // And when the others have a new one, which may end sessions that the old one would have kept.
    until("another leader", || async {
        for node in cluster.nodes.values().filter(|node| *node.node() != old) {
            if node.leadership().here && node.confirm_leader().await.is_ok() {
                return Some(());
            }
        }
        None
    })
    .await;
    assert!(
        cluster.node(&old).leadership().here,
        "openraft's leader steps down by itself now: say so in the docs"
    );
    assert!(cluster.node(&old).confirm_leader().await.is_err(), "two leaders answered keep-alives");
    cluster.network.heal_all();
    cluster.leader().await;
    cluster.end().await;
}
