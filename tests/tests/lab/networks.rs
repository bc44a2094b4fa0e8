//! Two networks, cut and healed and shaped.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::cluster::{Cut, Network, Plan};

use crate::traces;

/// Long enough for an answer on a busy machine.
const ANSWER: Duration = Duration::from_secs(5);
/// Long enough to be sure that none comes.
const SILENCE: Duration = Duration::from_millis(300);

fn all_reach_all(cluster: &Cluster, network: Network) -> Result<()> {
    let numbers = || cluster.nodes().iter().map(lab::cluster::Node::number);
    for (from, to) in numbers().flat_map(|from| numbers().map(move |to| (from, to))) {
        ensure!(cluster.ping(from, to, network, ANSWER)?, "n{from} does not reach n{to} on {network}");
    }
    Ok(())
}

#[test]
fn labs_of_two_and_three_nodes_go_up_beside_each_other_and_leave_nothing() -> Result<()> {
    let (two, three) = (Cluster::up(Plan::new(2))?, Cluster::up(Plan::new(3))?);
    for cluster in [&two, &three] {
        for network in Network::ALL {
            all_reach_all(cluster, network)?;
        }
        ensure!(cluster.cluster_file().exists(), "there is no cluster file");
        ensure!(cluster.target().counters()?.iter().all(|client| client.touching() == 0));
    }
    for cluster in [two, three] {
        let (name, folder) = (cluster.name(), cluster.folder().to_owned());
        let processes = cluster.state().processes();
        ensure!(processes.len() == 1 && processes[0].is_alive(), "the target runs");
        drop(cluster);
        traces::none(&name, &folder, &processes)?;
    }
    Ok(())
}

#[test]
fn cuts_separate_what_they_name_and_nothing_else() -> Result<()> {
    Cluster::run(Plan::new(3), |cluster| {
        for how in [Cut::Silent, Cut::Unplugged, Cut::Reset] {
            cluster.cut(1, Network::Lan, how)?;
            ensure!(!cluster.ping(1, 2, Network::Lan, SILENCE)?, "{how:?}: n1 reaches n2");
            ensure!(!cluster.ping(2, 1, Network::Lan, SILENCE)?, "{how:?}: n2 reaches n1");
            ensure!(cluster.ping(2, 3, Network::Lan, ANSWER)?, "{how:?}: n2 does not reach n3");
            ensure!(cluster.ping(1, 2, Network::San, ANSWER)?, "{how:?}: the other network is cut");
            ensure!(cluster.state().cuts.len() == 1, "{:?}", cluster.state().cuts);
            cluster.heal(1, Network::Lan)?;
            all_reach_all(cluster, Network::Lan)?;
        }
        cluster.cut_link(1, 2, Network::Lan)?;
        ensure!(!cluster.ping(1, 2, Network::Lan, SILENCE)? && !cluster.ping(2, 1, Network::Lan, SILENCE)?);
        ensure!(cluster.ping(1, 3, Network::Lan, ANSWER)? && cluster.ping(3, 2, Network::Lan, ANSWER)?);
        // Healing what was not cut changes nothing.
        cluster.heal(1, Network::Lan)?;
        ensure!(!cluster.ping(1, 2, Network::Lan, SILENCE)?, "a healed port healed a cut link");
        cluster.heal_link(1, 2, Network::Lan)?;
        all_reach_all(cluster, Network::Lan)?;
        ensure!(cluster.state().cuts.is_empty(), "{:?}", cluster.state().cuts);

        cluster.cut(3, Network::Lan, Cut::Silent)?;
        cluster.cut_way(1, 2, Network::San)?;
        cluster.pause("san", "target")?;
        cluster.heal_all()?;
        for network in Network::ALL {
            all_reach_all(cluster, network)?;
        }
        ensure!(cluster.state().cuts.is_empty() && cluster.target().counters().is_ok());
        Ok(())
    })
}

/// A TCP connection between two nodes: the end of the first, and that of the second.
fn connection(cluster: &Cluster, from: u8, to: u8) -> Result<(TcpStream, TcpStream)> {
    let address = SocketAddr::new(Network::Lan.address(to).into(), 0);
    let listener = cluster.node(to).namespace().within(|| TcpListener::bind(address))??;
    let address = listener.local_addr()?;
    let one = cluster.node(from).namespace().within(|| TcpStream::connect_timeout(&address, ANSWER))??;
    Ok((one, listener.accept()?.0))
}

fn next_read(stream: &mut TcpStream) -> Option<ErrorKind> {
    stream.read(&mut [0; 16]).err().map(|error| error.kind())
}

#[test]
fn a_silent_cut_is_noticed_by_nobody_and_a_reset_by_both_ends() -> Result<()> {
    Cluster::run(Plan::new(2), |cluster| {
        let (mut one, mut other) = connection(cluster, 1, 2)?;
        for stream in [&one, &other] {
            stream.set_read_timeout(Some(SILENCE))?;
        }
        // What one node sends to the other is lost; the way back works.
        cluster.cut_way(1, 2, Network::Lan)?;
        one.write_all(b"lost")?;
        other.write_all(b"heard")?;
        ensure!(next_read(&mut other) == Some(ErrorKind::WouldBlock), "a cut way let something through");
        ensure!(next_read(&mut one).is_none(), "the way back is cut as well");
        cluster.heal_way(1, 2, Network::Lan)?;

        other.set_read_timeout(Some(ANSWER))?;
        ensure!(next_read(&mut other).is_none(), "what was lost is sent again when the way is healed");
        other.set_read_timeout(Some(SILENCE))?;
        cluster.cut(1, Network::Lan, Cut::Silent)?;
        one.write_all(b"more")?;
        ensure!(next_read(&mut one) == Some(ErrorKind::WouldBlock), "a silent cut was heard of");
        ensure!(next_read(&mut other) == Some(ErrorKind::WouldBlock), "a cut let something through");
        cluster.heal(1, Network::Lan)?;

        cluster.cut(2, Network::Lan, Cut::Reset)?;
        let ended = [next_read(&mut one), next_read(&mut other)];
        let is_ended = |end: &Option<ErrorKind>| {
            matches!(end, Some(ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted))
        };
        // The first end may still have had the bytes from before.
        let first = if ended[0].is_none() { next_read(&mut one) } else { ended[0] };
        ensure!(is_ended(&first) && ended[1].iter().all(|_| is_ended(&ended[1])), "{first:?}, {ended:?}");
        Ok(())
    })
}

/// How long it takes to send `bytes` from one node to another, until the other has all.
fn send(cluster: &Cluster, from: u8, to: u8, bytes: usize) -> Result<Duration> {
    let (mut one, mut other) = connection(cluster, from, to)?;
    let start = Instant::now();
    let received = std::thread::scope(|scope| {
        let reader = scope.spawn(move || std::io::copy(&mut other, &mut std::io::sink()));
        let sent = one.write_all(&vec![7; bytes]).and_then(|()| one.shutdown(std::net::Shutdown::Write));
        let received = reader.join().expect("the reader does not panic");
        sent.and(received)
    });
    ensure!(received? == bytes as u64, "not everything arrived");
    Ok(start.elapsed())
}

#[test]
fn a_shaped_network_is_as_slow_as_asked_for() -> Result<()> {
    const RATE: u64 = 2_000_000;
    const BYTES: usize = 2_000_000;
    Cluster::run(Plan::new(3).rate_lan(RATE), |cluster| {
        for (from, to) in [(1, 2), (2, 1)] {
            let shaped = send(cluster, from, to, BYTES)?;
            ensure!(
                (Duration::from_millis(800)..Duration::from_secs(4)).contains(&shaped),
                "2 MB at 2 MB/s from n{from} to n{to} took {shaped:?}"
            );
        }
        for number in [1, 2] {
            cluster.shape(number, Network::Lan, None)?;
        }
        let free = send(cluster, 1, 2, BYTES)?;
        ensure!(free < Duration::from_millis(500), "2 MB without a limit took {free:?}");
        let other = send(cluster, 1, 3, BYTES)?;
        ensure!(other > Duration::from_millis(800), "n3 is no longer shaped: {other:?}");
        Ok(())
    })
    .context("shaping")
}
