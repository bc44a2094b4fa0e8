//! Bytes that mean nothing, on every port and every socket of a node that works meanwhile.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cluster::Network;
use lab::{Cluster, content};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{lockctl_status, log, running, wait_well};

/// More than the programs take here, in bytes of memory.
const MEMORY_MAX: u64 = 300 << 20;

/// Datagrams from another node: noise, and what begins like the first packet of a QUIC connection.
fn datagrams(cluster: &Cluster, port: u16, seed: u64) -> Result<()> {
    let address = (Network::Lan.address(1), port);
    cluster.node(3).namespace().within(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut random = SmallRng::seed_from_u64(seed);
        for round in 0..3000 {
            let mut bytes = vec![0; random.random_range(1..1400)];
            random.fill(&mut bytes[..]);
            if round % 3 == 0 && bytes.len() > 40 {
                // A long header, version 1, with connection ids of 8 bytes.
                bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
                bytes[14] = 8;
            }
            // A full buffer of the kernel is no matter.
            let _ = socket.send_to(&bytes, address);
        }
        Ok(())
    })?
}

/// Connections to a Unix socket with noise, halves of frames, and nothing at all.
fn streams(socket: &Path, seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut silent = Vec::new();
    for round in 0..150 {
        let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(Duration::from_millis(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        if round % 5 == 0 {
            silent.push(stream);
            continue;
        }
        let mut bytes = vec![0; random.random_range(1..5000)];
        random.fill(&mut bytes[..]);
        if round % 2 == 0 {
            let greeting = lockd::local::frame::greeting();
            bytes.splice(0..0, greeting);
        }
        // It may hang up at any byte.
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 4096]);
    }
    Ok(())
}

fn memory(cluster: &Cluster, daemon: &str) -> Result<u64> {
    let process = cluster.daemon("n1", daemon)?.process().context("it has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib << 10)
}

#[test]
fn garbage_on_every_port_and_socket_harms_nobody() -> Result<()> {
    running(3, |cluster| {
        let run = cluster.node(1).run_folder();
        let pid = cluster.daemon("n1", "csvfs")?.process().context("a mount")?.pid;
        let sockets: [PathBuf; 2] =
            [cluster.node(1).lockd_socket(), run.join("local").join(format!("{pid}.sock"))];
        let at = |number: u8, name: &str| cluster.node(number).mount_point().join(name);
        std::thread::scope(|scope| -> Result<()> {
            let throwing = [
                scope.spawn(|| datagrams(cluster, 7400, 1)),
                scope.spawn(|| datagrams(cluster, 7401, 2)),
                scope.spawn(|| streams(&sockets[0], 3)),
                scope.spawn(|| streams(&sockets[1], 4)),
            ];
            for round in 0..8_u64 {
                let writer = u8::try_from(round % 3 + 1)?;
                content::fill(&at(writer, &format!("file{round}")), round, 50)?;
            }
            throwing.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        for round in 0..8_u64 {
            content::check(&at(1, &format!("file{round}")), round, 50)?;
        }
        wait_well(cluster, "n1")?;
        ensure!(cluster.status(1)?["state"] == "direct");
        ensure!(lockctl_status(cluster, "n2")?["quorum"] == true);
        for daemon in ["lockd", "csvfs"] {
            let used = memory(cluster, daemon)?;
            ensure!(used < MEMORY_MAX, "{daemon} has taken {used} bytes");
            let said = log(cluster, "n1", daemon);
            ensure!(!said.contains("panicked"), "{daemon}: {said}");
        }
        Ok(())
    })
}
