//! Bytes that mean nothing, on every port and every socket of nodes that work meanwhile.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cluster::{Network, TARGET};
use lab::nonsense::{bombs, for_target, halves, memory, noise};
use lab::wait::until;
use lab::{Cluster, content};
use lockd::client::HolderRequest;
use lockd::cluster::tls::Credentials;
use lockd::cluster::{Cluster as ClusterFile, Program};
use lockd::ids::{ClientId, Epoch, NodeName, ResourceId, Sequence, SessionId, SlotId};
use lockd::local::frame;
use lockd::local::message::{Recipient, Request, ToLockd};
use lockd::machine::{ClientKind, Query};
use lockd::peers::quic::{QuicConfig, QuicEndpoint};
use lockd::peers::{BoxFuture, Channel, NotServed, PeerError, Peers, Serve};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{LIMIT, lockctl_status, log, running, wait_well};

/// More than the programs take here, in bytes of memory.
const MEMORY_MAX: u64 = 300 << 20;
/// The ports of the LUN's target: of its export, and for its control.
const TARGET_PORTS: [u16; 2] = [10809, 10810];

/// Datagrams from another node: noise, and what begins like the first packet of a QUIC connection.
fn datagrams(cluster: &Cluster, to: u8, port: u16, seed: u64) -> Result<()> {
    let address = (Network::Lan.address(to), port);
    cluster.node(3).namespace().within(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut random = SmallRng::seed_from_u64(seed);
        for round in 0..2000 {
            let len = random.random_range(1..1400);
            let mut bytes = noise(&mut random, len);
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

/// One message to a Unix socket by a connection of its own, which may be hung up on at any byte.
fn send(socket: &Path, bytes: &[u8]) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_millis(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let _ = stream.write_all(bytes);
    let _ = stream.read(&mut [0; 4096]);
    Ok(stream)
}

/// Connections to a Unix socket with noise, halves of frames, and nothing at all.
fn streams(socket: &Path, seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut silent = Vec::new();
    for round in 0..150 {
        if round % 5 == 0 {
            silent.push(UnixStream::connect(socket)?);
            continue;
        }
        let len = random.random_range(1..5000);
        let mut bytes = noise(&mut random, len);
        if round % 2 == 0 {
            bytes.splice(0..0, frame::greeting());
        }
        send(socket, &bytes)?;
    }
    Ok(())
}

/// Real messages to lockd's socket that are cut off, too long, or say that they are.
fn halves_of_messages(socket: &Path) -> Result<()> {
    let resource = ResourceId::Vm("web".to_owned());
    let transfer = HolderRequest::TransferIn {
        epoch: Epoch(7),
        resources: vec![resource.clone()],
        to: name("n2"),
        with_locks: true,
    };
    let transfer = transfer.encode().map_err(anyhow::Error::msg)?;
    let requests = [
        Request::Status,
        Request::Watch(true),
        Request::Query(Query::Resource(resource.clone())),
        Request::Register { kind: ClientKind::Tool, number: 7, known: Some((SessionId(9), ClientId(9))) },
        Request::Forward { to: Recipient::Node { node: name("n2"), resource }, request: transfer },
        Request::Command(vec![0xff; 300]),
    ];
    let mut open = Vec::new();
    for request in requests {
        let message = frame::encode(&ToLockd::Request { id: 1, patience_ms: 1000, request })?;
        for half in halves(&message, 12) {
            open.push(send(socket, &[&frame::greeting()[..], &half].concat())?);
        }
        // A whole frame around a part of the message.
        for half in halves(&message[4..], 12) {
            let length = u32::try_from(half.len())?.to_le_bytes();
            open.push(send(socket, &[&frame::greeting()[..], &length, &half].concat())?);
        }
        open.clear();
    }
    for length in [0, u32::try_from(frame::FRAME_MAX)?, u32::try_from(frame::FRAME_MAX)? + 1, u32::MAX] {
        // The longest that is allowed is waited for: many times at once.
        for _ in 0..20 {
            open.push(send(socket, &[&frame::greeting()[..], &length.to_le_bytes(), &[1; 100]].concat())?);
        }
    }
    for bomb in bombs(0) {
        let length = u32::try_from(bomb.len() - 1)?.to_le_bytes();
        send(socket, &[&frame::greeting()[..], &length, &bomb[1..]].concat())?;
    }
    Ok(())
}

fn name(node: &str) -> NodeName {
    node.parse().expect("the name of a node")
}

fn to_target(cluster: &Cluster, port: u16) -> Result<TcpStream> {
    let address: Ipv4Addr = Network::San.address(TARGET);
    let stream = cluster.node(3).namespace().within(|| TcpStream::connect((address, port)))??;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    stream.set_read_timeout(Some(Duration::from_millis(5)))?;
    Ok(stream)
}

/// A connection to the export that has agreed on everything, as a client's.
fn agreed(cluster: &Cluster) -> Result<TcpStream> {
    let mut stream = to_target(cluster, TARGET_PORTS[0])?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    // The fixed newstyle without zeroes, then GO with no questions.
    let mut bytes = [&[0, 0, 0, 3], &b"IHAVEOPT"[..], &7_u32.to_be_bytes(), &9_u32.to_be_bytes()].concat();
    bytes.extend_from_slice(&[0, 0, 0, 3]);
    bytes.extend_from_slice(b"vms\0\0");
    stream.write_all(&bytes)?;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (kind, length) = (number(12), number(16));
        std::io::copy(&mut (&mut stream).take(length.into()), &mut std::io::sink())?;
        ensure!(kind < 0x8000_0000, "the target refuses GO: {kind:#x}");
        if kind == 1 {
            stream.set_read_timeout(Some(Duration::from_millis(5)))?;
            return Ok(stream);
        }
    }
}

/// Nonsense to both ports of the target; and, after a proper greeting, requests that cannot be: beyond the end of the LUN,
/// longer than anything, of no kind. None of them would touch a block.
fn at_the_target(cluster: &Cluster, seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut open = Vec::new();
    for port in TARGET_PORTS {
        for (round, bytes) in for_target(&mut random).into_iter().enumerate() {
            let mut stream = to_target(cluster, port)?;
            let _ = stream.write_all(&bytes);
            let _ = stream.read(&mut [0; 4096]);
            if round % 4 == 0 {
                open.push(stream);
            }
        }
    }
    let request = |kind: u16, offset: u64, length: u32| {
        let mut bytes = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &[7; 8]].concat();
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes
    };
    // Read, write, disconnect, flush, trim, cache, write zeroes, block status, resize, and what nobody knows.
    for kind in (0..10).chain([99, u16::MAX]) {
        let places = [
            (u64::MAX, u32::MAX),
            (1 << 40, 0),
            (1 << 40, 4096),
            (1 << 40, u32::MAX),
            (u64::MAX - 4096, 1 << 20),
        ];
        for (offset, length) in places {
            let mut stream = agreed(cluster)?;
            let bytes = [request(kind, offset, length), vec![0x5a; 100_000]].concat();
            let _ = stream.write_all(&bytes);
            let _ = stream.read(&mut [0; 4096]);
            open.push(stream);
        }
        // Less than a request, and then nothing.
        let mut stream = agreed(cluster)?;
        let _ = stream.write_all(&request(kind, 0, 4096)[..20]);
        open.push(stream);
        open.truncate(40);
    }
    for _ in 0..20 {
        let mut stream = agreed(cluster)?;
        let bytes = noise(&mut random, 5000);
        // Not by chance a request.
        let _ = stream.write_all(&[&[0; 4][..], &bytes].concat());
    }
    Ok(())
}

/// The processes that are thrown at.
struct Victims<'a> {
    cluster: &'a Cluster,
    all: Vec<(&'static str, &'static str, u32)>,
}

impl<'a> Victims<'a> {
    fn of(cluster: &'a Cluster, daemons: &[(&'static str, &'static str)]) -> Result<Self> {
        let pid = |(host, name): &(&'static str, &'static str)| {
            let process = cluster.daemon(host, name)?.process().context("it does not run")?;
            anyhow::Ok((*host, *name, process.pid))
        };
        Ok(Self { cluster, all: daemons.iter().map(pid).collect::<Result<_>>()? })
    }

    /// The same processes run, well, and have not grown.
    fn are_well(&self) -> Result<()> {
        for (host, daemon, pid) in &self.all {
            let now = self.cluster.daemon(host, daemon)?;
            ensure!(now.is_alive(), "{host}/{daemon} has died: {}", log(self.cluster, host, daemon));
            let used = memory(*pid)?;
            ensure!(used < MEMORY_MAX, "{host}/{daemon} has taken {used} bytes");
            let said = log(self.cluster, host, daemon);
            ensure!(!said.contains("panicked"), "{host}/{daemon}: {said}");
        }
        Ok(())
    }
}

/// Two nodes write and read while `throw` goes on.
fn beside_work(cluster: &Cluster, nodes: &[u8], throw: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let at = |number: u8, name: &str| cluster.node(number).mount_point().join(name);
    let writer = |round: u64| nodes[usize::try_from(round).unwrap_or_default() % nodes.len()];
    std::thread::scope(|scope| -> Result<()> {
        let throwing = scope.spawn(throw);
        let mut round = 0;
        while !throwing.is_finished() || round < 8 {
            content::fill(&at(writer(round), &format!("file{}", round % 8)), round % 8, 50)?;
            round += 1;
        }
        throwing.join().expect("no panic")
    })?;
    for round in 0..8 {
        for number in nodes {
            content::check(&at(*number, &format!("file{round}")), round, 50)?;
        }
    }
    for number in nodes {
        ensure!(cluster.status(*number)?["state"] == "direct");
    }
    Ok(())
}

#[test]
fn garbage_on_every_port_and_socket_harms_nobody() -> Result<()> {
    running(3, |cluster| {
        let run = cluster.node(1).run_folder();
        let pid = cluster.daemon("n1", "csvfs")?.process().context("a mount")?.pid;
        let sockets: [PathBuf; 2] =
            [cluster.node(1).lockd_socket(), run.join("local").join(format!("{pid}.sock"))];
        // The coordinator's node, and another one.
        let of = [("n1", "lockd"), ("n1", "csvfs"), ("n2", "lockd"), ("n2", "csvfs"), ("san", "target")];
        let victims = Victims::of(cluster, &of)?;
        beside_work(cluster, &[1, 2, 3], || {
            std::thread::scope(|scope| {
                let throwing = [
                    scope.spawn(|| datagrams(cluster, 1, 7400, 1)),
                    scope.spawn(|| datagrams(cluster, 1, 7401, 2)),
                    scope.spawn(|| datagrams(cluster, 2, 7401, 3)),
                    scope.spawn(|| streams(&sockets[0], 4)),
                    scope.spawn(|| streams(&sockets[1], 5)),
                    scope.spawn(|| halves_of_messages(&sockets[0])),
                    scope.spawn(|| at_the_target(cluster, 6)),
                ];
                throwing.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
            })
        })?;
        wait_well(cluster, "n1")?;
        ensure!(lockctl_status(cluster, "n2")?["quorum"] == true);
        // Who asks the target properly is answered.
        cluster.target().counters()?;
        victims.are_well()
    })
}

/// A program with the certificate of a node that answers whatever it is asked with noise, and remembers what it was.
#[derive(Debug)]
struct Rogue {
    random: Mutex<SmallRng>,
    heard: Mutex<Vec<(Channel, Vec<u8>)>>,
}

impl Serve for Rogue {
    fn serve<'a>(
        &'a self,
        _from: &'a NodeName,
        channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>> {
        let mut heard = self.heard.lock();
        if heard.len() < 200 {
            heard.push((channel, frame));
        }
        let mut random = self.random.lock();
        let len = if random.random_bool(0.05) { 1 << 20 } else { random.random_range(0..200) };
        let answer = noise(&mut random, len);
        Box::pin(async move { Ok(answer) })
    }
}

/// What a mount is asked by others, by a session and a client that there are not.
fn for_mounts() -> Result<Vec<(Channel, Vec<u8>)>> {
    use csvfs::proto::{Call, Callback, Claim, Declared, Head, Key, Operation, Request, codec};
    use csvfs::types::Ino;
    let (session, client, coordinator) = (SessionId(1 << 40), ClientId(1 << 40), Epoch(1));
    let head = Head { session, client, coordinator, slot: Some((SlotId(0), Sequence(1))) };
    let claim = Claim { automatic: false, pinned: true, offer: None };
    let operations = [
        Operation::GetAttr { ino: Ino::ROOT },
        Operation::Open { ino: Ino(2), write: true },
        Operation::OpenSet { files: vec![Declared { ino: Ino(2), write: true, served: None }; 3] },
        Operation::Acquire { files: vec![Ino(2), Ino(3)], claim },
        Operation::Attach {
            first: true,
            last: true,
            open: vec![Declared { ino: Ino(2), write: true, served: None }; 3],
            left: Default::default(),
            kept: Vec::new(),
        },
    ];
    let mut whole = Vec::new();
    for operation in operations {
        whole.push((Channel::Control, codec::encode(&Request { head, operation })?));
    }
    let calls = [
        Callback::Invalidate { keys: vec![Key::Attr(Ino(2)), Key::Layout(Ino(2))] },
        Callback::Yield { journey: 7, files: vec![(Ino(2), 7)], soft: false, next: None },
    ];
    for what in calls {
        whole.push((Channel::File, codec::encode(&Call { client, coordinator, what })?));
    }
    // The head of a redirected request, without the checksums that it ends with, and with a length that it has not.
    whole.push((Channel::File, [&b"CSVQ\x01\0\x02\0"[..], &[0xff; 200]].concat()));
    Ok(whole)
}

/// Sends all that to a node, as the same program of node 3, and gives how many of them were answered by anything. Must be
/// done where the addresses of node 3 are.
fn ask_all(
    file: &ClusterFile,
    program: Program,
    to: &NodeName,
    frames: impl FnOnce(&Rogue) -> Vec<(Channel, Vec<u8>)>,
) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let rogue = Arc::new(Rogue { random: Mutex::new(SmallRng::seed_from_u64(11)), heard: Mutex::default() });
    let credentials = Credentials::load(file, &name("n3"))?;
    let config = QuicConfig::new(Arc::new(file.clone()), credentials, program);
    let answered = runtime.block_on(async {
        let endpoint = QuicEndpoint::start(config, Arc::clone(&rogue) as _)?;
        // The first is heard when there is a way.
        endpoint.request(to, Channel::Control, vec![0], Duration::from_secs(10)).await.ok();
        let mut answered = 0;
        for (channel, bytes) in frames(&rogue) {
            match endpoint.request(to, channel, bytes, Duration::from_millis(300)).await {
                Ok(_) => answered += 1,
                Err(PeerError::Stopped | PeerError::UnknownNode(_)) => {
                    anyhow::bail!("this program has stopped")
                }
                Err(_) => {}
            }
        }
        endpoint.stop().await;
        anyhow::Ok(answered)
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(answered)
}

/// A node whose programs have its certificate and speak nonsense: what they send is refused, what they answer counts for
/// nothing.
#[test]
fn a_member_that_speaks_nonsense_harms_nobody() -> Result<()> {
    running(2, |cluster| {
        wait_well(cluster, "n1")?;
        cluster.stop("n3", "lockd")?;
        let file = ClusterFile::read(&cluster.cluster_file())?;
        let victims =
            Victims::of(cluster, &[("n1", "lockd"), ("n1", "csvfs"), ("n2", "lockd"), ("n2", "csvfs")])?;
        let within = |work: &(dyn Fn() -> Result<usize> + Sync)| cluster.node(3).namespace().within(work)?;
        beside_work(cluster, &[1, 2], || {
            let lockd = |rogue: &Rogue| {
                let mut random = SmallRng::seed_from_u64(12);
                let mut all = Vec::new();
                for channel in Channel::ALL {
                    all.extend((0..10).map(|_| {
                        let len = random.random_range(0..3000);
                        (channel, noise(&mut random, len))
                    }));
                    all.extend(bombs(1).into_iter().step_by(3).map(|bomb| (channel, bomb)));
                }
                // What it is asked meanwhile, as a voter and as an agent: cut off.
                let heard = until("n3 to be asked", LIMIT, || {
                    lockctl_status(cluster, "n1").ok()?;
                    let heard = rogue.heard.lock();
                    let of = |channel| heard.iter().any(|(heard, _)| *heard == channel);
                    (of(Channel::Raft) && of(Channel::Control)).then(|| heard.clone())
                });
                let heard = heard.expect("n1 and n2 look for n3");
                for (channel, frame) in heard.into_iter().take(40) {
                    all.extend(halves(&frame, 6).into_iter().map(|half| (channel, half)));
                }
                all
            };
            within(&|| ask_all(&file, Program::Lockd, &name("n1"), lockd))?;
            let mounts = |_: &Rogue| {
                let mut all = Vec::new();
                for (channel, frame) in for_mounts().expect("messages") {
                    all.extend(halves(&frame, 10).into_iter().map(|half| (channel, half)));
                    // Whole: who asks is nobody.
                    all.push((channel, frame));
                }
                for channel in Channel::ALL {
                    all.extend(
                        bombs(csvfs::proto::VERSION).into_iter().step_by(5).map(|bomb| (channel, bomb)),
                    );
                    all.push((channel, vec![0x43; 8 << 20]));
                }
                all
            };
            for to in ["n1", "n2"] {
                within(&|| ask_all(&file, Program::Mount(0), &name(to), mounts))?;
            }
            Ok(())
        })?;
        ensure!(lockctl_status(cluster, "n1")?["quorum"] == true);
        victims.are_well()?;
        // The real one is welcome as before.
        cluster.restart("n3", "lockd")?;
        wait_well(cluster, "n1")?;
        cluster.mount(3)?;
        for round in 0..8 {
            content::check(&cluster.path(3, &format!("file{round}")), round, 50)?;
        }
        Ok(())
    })
}
