//! Voters die, and the cluster goes on or says why it does not.

use std::time::{Duration, Instant};

use lockd::authority::Authority;
use lockd::ids::ResourceId;
use lockd::machine::ClientKind;

use crate::site::{Site, wait_for};

fn vm(name: &str) -> ResourceId {
    ResourceId::Vm(name.to_owned())
}

#[test]
fn the_leader_is_killed_and_the_next_command_succeeds_soon() {
    let mut site = Site::start(3, 1, 8.0);
    let leader = site.leader();
    let follower = site.follower();
    let near = site.client(follower, ClientKind::Vmhost);
    let far = site.client(3, ClientKind::Vmhost);
    let holding = near.acquire(&vm("web"), near.client()).expect("free");
    site.kill(leader);
    let killed = Instant::now();
    near.acquire(&vm("db"), near.client()).expect("by the next leader");
    let at_voter = killed.elapsed();
    far.acquire(&vm("mail"), far.client()).expect("by the next leader");
    let at_agent = killed.elapsed();
    eprintln!("next command after {at_voter:?} at a voter, {at_agent:?} at an agent");
    // The bar is 2 s on a calm machine.
    assert!(at_voter < Duration::from_secs(6), "{at_voter:?}");
    assert_eq!(far.holder(&vm("web")), Some(holding), "what was acknowledged is there");
    site.start_node(leader);
    wait_for("the killed voter to come back", || {
        let status = site.json(&["status"]);
        let nodes = status["nodes"].as_array()?;
        let back = nodes.iter().filter(|node| node["voter"]["role"] == "follower").count();
        (back == 2).then_some(())
    });
}

#[test]
fn without_a_quorum_everything_says_so_and_goes_on_when_it_is_back() {
    let mut site = Site::start(3, 0, 2.0);
    let leader = site.leader();
    let client = site.client(leader, ClientKind::Vmhost);
    let holding = client.acquire(&vm("web"), client.client()).expect("free");
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    site.kill(others[0]);
    client.acquire(&vm("db"), client.client()).expect("two of three are a quorum");
    site.kill(others[1]);
    wait_for("the lease to lapse", || {
        (!client.shared_lease().holds(&lockd::clock::SystemClock)).then_some(())
    });
    let node = format!("n{leader}");
    for command in [&["ls"][..], &["status"], &["release", "vm/web"], &["voters"]] {
        let output = site.lockctl(&[&["--node", &node, "--timeout", "1"], command].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {output:?}");
        assert!(error.contains("no quorum"), "{command:?}: {error}");
    }
    let status = site.json(&["--node", &node, "status"]);
    assert_eq!(status["quorum"], false);
    assert_eq!(status["nodes"][others[0]]["reachable"], false);
    assert_eq!(status["nodes"][leader]["reachable"], true);

    // L2: the session was late, and nobody has ended it.
    site.start_node(others[0]);
    client.acquire(&vm("mail"), client.client()).expect("there is a quorum again");
    wait_for("the lease to be back", || {
        client.shared_lease().holds(&lockd::clock::SystemClock).then_some(())
    });
    assert_eq!(client.holder(&vm("web")), Some(holding));
}
