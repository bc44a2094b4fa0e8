use std::sync::Arc;
use std::time::Duration;

use super::world::{LONG, Oddities, World, config, echo, fresh_address, name, until};
use crate::cluster::Program;
use crate::cluster::tls::tests::reissue;
use crate::peers::PeerError;
use crate::peers::quic::{PeerState, QuicEndpoint};

fn start(config: super::super::QuicConfig) -> QuicEndpoint {
    QuicEndpoint::start(config, Arc::new(Oddities)).unwrap()
}

/// Why `from` has no connection to `to`.
async fn refusal(from: &QuicEndpoint, to: &str) -> String {
    match echo(from, to, LONG).await {
        Err(PeerError::Refused { node, why }) => {
            assert_eq!(node, name(to));
            assert_eq!(from.status()[0].state, PeerState::Refused(why.clone()));
            why
        }
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_certificate_is_refused_by_both_sides() {
    let ours = World::new(&["n1", "n2"]);
    let theirs = World::at(&[("n1", ours.address("n1")), ("n2", ours.address("n2"))]);
    let (one, two) = (ours.start("n1"), theirs.start("n2"));
    let words = "the certificate of csv://lab/n2 was not issued by this cluster's authority";
    assert!(refusal(&one, "n2").await.starts_with(&format!("we do not accept it: {words}")));
    assert!(refusal(&two, "n1").await.starts_with("we do not accept it: the certificate of csv://lab/n1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_refused_and_its_holder_told() {
    let world = World::new(&["n1", "n2"]);
    reissue(&world.cluster, "n2", -60, 2);
    let (one, two) = (world.start("n1"), world.start("n2"));
    assert_eq!(two.certificate_days_left(), 0);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let why = refusal(&one, "n2").await;
    assert!(why.starts_with("we do not accept it: the certificate expired "), "{why}");
    let why = refusal(&two, "n1").await;
    assert!(why.starts_with("it does not accept us: the certificate expired "), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_than_the_one_meant_is_refused() {
    let world = World::new(&["n1", "n2", "n3"]);
    // The cluster file of node 1 has node 3's address for node 2.
    let nodes = [("n1", world.address("n1")), ("n2", world.address("n3")), ("n3", world.address("n2"))];
    let one = start(config(&world.variant(&nodes, 7400), "n1"));
    let _three = world.start("n3");
    assert_eq!(
        refusal(&one, "n2").await,
        "we do not accept it: the certificate is of node n3, but it should be of node n2: is n2's address in the \
         cluster file right?"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_the_cluster_file_does_not_name_is_refused() {
    let world = World::new(&["n1", "n2"]);
    let without = world.variant(&[("n1", world.address("n1"))], 7400);
    let _one = start(config(&without, "n1"));
    let two = world.start("n2");
    assert_eq!(
        refusal(&two, "n1").await,
        "it does not accept us: the certificate is of node n2, which the cluster file does not name"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_without_a_common_version_say_so_and_others_agree() {
    let world = World::new(&["n1", "n2", "n3"]);
    let one = start(world.config("n1"));
    let two = start(world.config("n2").speaking(&[3, 2]));
    let three = start(world.config("n3").speaking(&[2, 1]));
    assert_eq!(
        refusal(&one, "n2").await,
        "it speaks none of our wire versions (csv/1): upgrade the node with the older release; a release speaks its own \
         version and the previous one"
    );
    assert!(refusal(&two, "n1").await.starts_with("it speaks none of our wire versions (csv/3, csv/2)"));
    for (from, to, version) in [(&three, "n1", 1), (&one, "n3", 1), (&two, "n3", 2), (&three, "n2", 2)] {
        echo(from, to, LONG).await.unwrap();
        let status = from.status().into_iter().find(|status| status.node == name(to)).unwrap();
        assert_eq!(status.version, Some(version), "{to}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_programs_port_is_refused() {
    let world = World::new(&["n1", "n2"]);
    let _one = world.start("n1");
    let nodes = [("n1", world.address("n1")), ("n2", world.address("n2"))];
    let mut mount = config(&world.variant(&nodes, 7399), "n2");
    mount.program = Program::Mount(0);
    let mount = start(mount);
    assert_eq!(refusal(&mount, "n1").await, "this is the port of lockd, not of the mount of volume 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_machines_with_one_node_name_the_second_is_refused_and_both_are_named() {
    let world = World::new(&["n1", "n2"]);
    let one = world.start("n1");
    let first = world.start("n2");
    echo(&first, "n1", LONG).await.unwrap();
    let elsewhere = fresh_address();
    let other = world.variant(&[("n1", world.address("n1")), ("n2", elsewhere)], 7400);
    let second = start(config(&other, "n2"));
    let why = refusal(&second, "n1").await;
    let addresses = format!("{}:7400 is accepted, {elsewhere}:7400 is refused", world.address("n2"));
    assert!(why.starts_with(&format!("two machines say that they are node n2: {addresses}")), "{why}");
    assert_eq!(one.conflicts().len(), 1);
    assert_eq!(one.conflicts()[0].to_string(), why);
    echo(&first, "n1", LONG).await.expect("the first goes on");

    first.stop().await;
    until("its end is known", || !one.status()[0].asks_us).await;
    let mut accepted = false;
    for _ in 0..40 {
        accepted = echo(&second, "n1", LONG).await.is_ok();
        if accepted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(accepted, "when the first is gone, the second may have the name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_our_own_name_is_refused() {
    let world = World::new(&["n1", "n2"]);
    let one = world.start("n1");
    // It says that it is node 1 too, and takes us for node 2 by its address; so it must be told apart by name alone.
    let twin = world.variant(&[("n1", fresh_address()), ("n2", world.address("n1"))], 7400);
    let twin = start(config(&twin, "n1"));
    assert!(refusal(&twin, "n2").await.starts_with("we do not accept it: the certificate is of node n1"));
    drop(one);
}
