//! Sets of resources change hands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use lockd::authority::Authority;
use lockd::client::{HolderReply, HolderRequest, Listener, Set, Transferred};
use lockd::ids::{ClientId, Epoch, NodeName, ResourceId};
use lockd::machine::{ClientKind, HoldMode, Move, Operation, Reply};
use parking_lot::Mutex;

use crate::site::{MOUNT, Site, VOLUME};

#[test]
fn ten_files_and_ten_thousand_change_hands_in_one_entry() {
    let site = Site::start(3, 0, 8.0);
    let source = site.mount(0);
    let target = site.client(1, MOUNT);
    for (from, count) in [(0_u64, 10_u64), (100, 10_000)] {
        let files: Vec<ResourceId> = (from..from + count).map(|ino| ResourceId::File(VOLUME, ino)).collect();
        let epochs = acquire_all(&source, &files);
        let moves = files.iter().zip(epochs).map(|(resource, epoch)| Move {
            resource: resource.clone(),
            epoch,
            from: source.client(),
            to: target.client(),
        });
        let moves: Vec<Move> = moves.collect();
        let began = Instant::now();
        let within = Duration::from_secs(10);
        let set = |cookie| Set { cookie, moves: moves.clone(), escrow: false, pinned: true };
        let done = source.transfer(source.client(), set(source.cookie()), within);
        let Transferred::Done(epoch) = done.expect("moved") else { panic!("aborted") };
        eprintln!("{count} files in {:?}", began.elapsed());
        for file in [&files[0], &files[files.len() - 1]] {
            let holding = source.holder(file).expect("held");
            assert_eq!((holding.client, holding.epoch), (target.client(), epoch));
        }
        // A second time it is not the source's any more.
        assert!(source.transfer(source.client(), set(source.cookie()), within).is_err());
    }
}

/// Many slots at once.
fn acquire_all(client: &lockd::client::LockClient, files: &[ResourceId]) -> Vec<Epoch> {
    std::thread::scope(|scope| {
        let parts: Vec<_> = files
            .chunks(files.len().div_ceil(32))
            .map(|part| {
                scope.spawn(move || part.iter().map(|file| acquire(client, file)).collect::<Vec<_>>())
            })
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    })
}

fn acquire(client: &lockd::client::LockClient, file: &ResourceId) -> Epoch {
    let (resource, mode, pinned) = (file.clone(), HoldMode::Exclusive, true);
    match client.operate(client.client(), Operation::Acquire { resource, mode, pinned }) {
        Ok(Reply::Acquired(info)) => info.epoch,
        other => panic!("{file}: {other:?}"),
    }
}

/// A host that does what it is asked, and remembers it.
#[derive(Debug, Default)]
struct Host {
    asked: Mutex<Vec<(ClientId, NodeName, HolderRequest)>>,
    /// How often something is in the way.
    in_the_way: AtomicU64,
}

impl Listener for Host {
    fn serve(&self, client: ClientId, from: &NodeName, request: &[u8]) -> Result<Vec<u8>, String> {
        let request = HolderRequest::decode(request)?;
        let reply = match &request {
            HolderRequest::Release(_) => HolderReply::Refused("not now".to_owned()),
            HolderRequest::Acquire(_) if self.in_the_way.load(SeqCst) > 0 => {
                self.in_the_way.fetch_sub(1, SeqCst);
                HolderReply::Passing("it is on its way".to_owned())
            }
            _ => HolderReply::Done { epoch: Some(Epoch(42)), pause_ns: 3_000_000, cookie: None },
        };
        self.asked.lock().push((client, from.clone(), request));
        reply.encode()
    }
}

#[test]
fn requests_reach_the_holder_wherever_it_is() {
    let site = Site::start(1, 2, 8.0);
    let host = Arc::new(Host::default());
    let client = site.listening(1, ClientKind::Vmhost, Arc::clone(&host) as _);
    let web = ResourceId::Vm("web".to_owned());
    client.acquire(&web, client.client()).expect("free");
    let moved = site.lockctl(&["transfer", "vm/web", "--to", "n2"]);
    assert!(moved.status.success(), "{moved:?}");
    assert!(String::from_utf8_lossy(&moved.stdout).contains("pause 3.0 ms"), "{moved:?}");
    let refused = site.lockctl(&["--node", "n2", "release", "vm/web"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not now"), "{refused:?}");
    let acquired = site.lockctl(&["acquire", "vm/db", "--node", "n1"]);
    assert!(acquired.status.success(), "{acquired:?}");
    let asked = host.asked.lock();
    let to = "n2".parse().expect("a name");
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[0].2, HolderRequest::Transfer { resources: vec![web], to, with_locks: false });
    assert!(asked.iter().all(|(asked, _, _)| *asked == client.client()));
}

#[test]
fn what_an_operator_holds_without_a_program_moves_too() {
    let site = Site::start(1, 2, 8.0);
    let run = |arguments: &[&str]| {
        let output = site.lockctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    run(&["acquire", "vm/web", "vm/db", "--node", "n1"]);
    run(&["transfer", "vm/web", "vm/db", "--to", "n2"]);
    let listed = site.json(&["ls"]);
    let nodes: Vec<_> =
        listed.as_array().expect("a list").iter().map(|line| &line["holders"][0]["node"]).collect();
    assert_eq!(nodes, ["n2", "n2"]);
    let stale = site.lockctl(&["transfer", "vm/none", "--to", "n2"]);
    assert_eq!(stale.status.code(), Some(1));
    let unknown = site.lockctl(&["transfer", "vm/web", "--to", "n9"]);
    assert_eq!(unknown.status.code(), Some(1));
    let error = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(error.contains("n9"), "{error}");
    run(&["release", "vm/web", "vm/db"]);
    assert_eq!(site.json(&["ls"]), serde_json::json!([]));
}

/// Found: `lockctl acquire` failed when another mount was about to coordinate the volume, for some milliseconds.
#[test]
fn what_is_in_the_way_for_a_moment_is_waited_for_and_told_when_it_stays() {
    let site = Site::start(1, 2, 8.0);
    let host = Arc::new(Host::default());
    let _client = site.listening(1, ClientKind::Vmhost, Arc::clone(&host) as _);
    let acquire = ["acquire", "vm/web", "--node", "n1", "--timeout", "2"];
    host.in_the_way.store(3, SeqCst);
    let acquired = site.lockctl(&acquire);
    assert!(acquired.status.success(), "{acquired:?}");
    assert_eq!(host.asked.lock().len(), 4);
    host.in_the_way.store(1000, SeqCst);
    let since = Instant::now();
    let refused = site.lockctl(&acquire);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("it is on its way; tried for 2 s"), "{text}");
    assert!(since.elapsed() >= Duration::from_secs(1), "{:?}", since.elapsed());
}
