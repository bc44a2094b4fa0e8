//! The nodes, their coordinator and their LUN.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockd::authority::{Authority, Standing};
use lockd::clock::SystemClock;
use lockd::ids::{ClientId, Epoch, ResourceId, SessionId};
use lockd::machine::Cookie;
use lockd::network::InProcess;
use lockd::rules::Rules;
use redb::Database;
use redb::backends::InMemoryBackend;
use redirector::buffer::Pool;
use redirector::lun::Lun;

use super::super::platter::Platter;
use super::super::world::{FIRST, NoSpaceNeeded, VOLUME, WHO, bytes, slice, start, until, wait};
use super::network::Network;
use super::realm::{Realm, Seat};
use crate::coordinator::{self, Coordinator, Openings};
use crate::node::{Given, Node, Offer, Options, Parts, SetRefusal};
use crate::proto::SetAttr;
use crate::refusal::Refusal;
use crate::service::{FileService, HandleId, OpenMode, Opened, WriteMode};
use crate::store::check::check;
use crate::store::cookie::HashKey;
use crate::store::initialise;
use crate::types::{Attr, Ino, LunBlock, Run, Timestamp};

const KEY: HashKey = HashKey([1; 16]);

/// A node and its session.
pub struct Member {
    pub seat: Arc<Seat>,
    pub client: ClientId,
    pub node: Arc<Node>,
}

/// See the module. The first node is the coordinator's.
pub struct Stage {
    pub realm: Arc<Realm>,
    pub network: Arc<Network>,
    pub platter: Arc<Platter>,
    pub coordinator: Arc<Coordinator>,
    pub members: Vec<Member>,
    /// Whose node is the coordinator's.
    pub home: usize,
    database: Arc<Database>,
    /// How often the store was opened.
    opened: u64,
}

fn open_coordinator(
    database: &Arc<Database>,
    platter: &Arc<Platter>,
    seat: &Arc<Seat>,
    network: &Arc<Network>,
    (epoch, opening): (Epoch, u64),
) -> Arc<Coordinator> {
    let parts = coordinator::Parts {
        database: Arc::clone(database),
        journal: None,
        space: Arc::new(NoSpaceNeeded),
        lun: Arc::clone(platter) as _,
        authority: Arc::clone(seat) as _,
        peers: Arc::new(Arc::clone(network)),
        clock: Arc::new(SystemClock),
        rules: Rules::from_test_environment(),
        key: KEY,
        epoch,
        openings: Openings { last: Epoch(opening - 1), this: Epoch(opening) },
        volume: VOLUME,
        read_only: false,
        discard: false,
        settle: Duration::ZERO,
        quiesce: Duration::ZERO,
        beside: None,
        scrub: false,
    };
    Coordinator::start(parts).unwrap()
}

pub const READ_WRITE: OpenMode = OpenMode {
    read: true,
    write: true,
    direct: false,
    clear_set_id: false,
    truncate: false,
    exclusive: false,
    pid: 0,
};

impl Stage {
    pub fn new(nodes: usize, seed: u64, trouble: f64) -> Self {
        let platter = Platter::new(64 << 20);
        let blocks = platter.geometry().size / 4096 - FIRST;
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        initialise(&database, &[Run { start: LunBlock(FIRST), len: blocks }], Timestamp(1)).unwrap();
        let database = Arc::new(database);
        let (realm, network) = (Arc::new(Realm::default()), Network::new(seed, trouble));
        let rules = Rules::from_test_environment();
        let home = realm.sit();
        let first = home.add_client().unwrap();
        let role = home.acquire(&ResourceId::Coordinator(VOLUME), first).unwrap().epoch;
        let coordinator = open_coordinator(&database, &platter, &home, &network, (role, 1));
        let options = Options {
            cluster: true,
            reserve_min: 64,
            reserve_max: 1024,
            commit_rounds: 1,
            ..Options::default()
        };
        let mut members = Vec::new();
        for number in 0..nodes {
            let (seat, client) = if number == 0 {
                (Arc::clone(&home), first)
            } else {
                let seat = realm.sit();
                let client = seat.add_client().unwrap();
                (seat, client)
            };
            let carrier = if number == 0 {
                Arc::new(InProcess(Arc::clone(&coordinator))) as _
            } else {
                network.carrier(client, Arc::clone(&coordinator) as _)
            };
            let node = Node::start(Parts {
                carrier: Some(carrier),
                lun: Arc::clone(&platter) as _,
                authority: Arc::clone(&seat) as _,
                beat: None,
                peers: Arc::new(Arc::clone(&network)),
                clock: Arc::new(SystemClock),
                rules,
                pool: Pool::default(),
                volume: VOLUME,
                client,
                coordinator: role,
                options,
            });
            let node = Arc::new(node.unwrap());
            network.serve(client, Arc::clone(&node) as _);
            wait(|done| node.attach(done)).unwrap();
            members.push(Member { seat, client, node });
        }
        let home = 0;
        Self { realm, network, platter, coordinator, members, home, database, opened: 1 }
    }

    /// The coordinator's node dies: it hears and says nothing more, and what it has not answered it never does.
    pub fn kill_coordinator(&mut self) {
        self.network.cut(self.members[self.home].client);
        self.coordinator.stop();
    }

    /// Node `number` coordinates from now on. Those of `followers` are told so.
    pub fn take_over(&mut self, number: usize, followers: &[usize]) {
        let member = &self.members[number];
        let role = ResourceId::Coordinator(VOLUME);
        let epoch = member.seat.acquire(&role, member.client).unwrap().epoch;
        let (platter, network) = (&self.platter, &self.network);
        self.opened += 1;
        let epochs = (epoch, self.opened);
        self.coordinator = open_coordinator(&self.database, platter, &member.seat, network, epochs);
        self.home = number;
        for follower in followers {
            self.follow(*follower);
        }
    }

    /// A node asks the coordinator of now; it is told when that one serves it.
    pub fn follow(&self, number: usize) -> std::sync::mpsc::Receiver<Result<(), Refusal>> {
        let member = &self.members[number];
        let home = self.members[self.home].seat.holder(&ResourceId::Coordinator(VOLUME)).unwrap();
        let carrier: Arc<dyn lockd::network::Carrier> = if number == self.home {
            Arc::new(InProcess(Arc::clone(&self.coordinator)))
        } else {
            self.network.carrier(member.client, Arc::clone(&self.coordinator) as _)
        };
        start(|done| member.node.follow(carrier, home.epoch, done))
    }

    /// The role goes to node `number` while everything goes on, as a planned move has it.
    pub fn move_to(&mut self, number: usize) {
        self.retire();
        let all: Vec<usize> = (0..self.members.len()).collect();
        self.take_over(number, &all);
    }

    /// The coordinator hands its role on, and nobody has it yet.
    pub fn retire(&mut self) {
        let from = &self.members[self.home];
        wait(|done| from.node.prepare_to_resign(done)).unwrap();
        until("files to rest", || self.coordinator.quieten());
        let slots = wait(|done| from.node.resign(done)).unwrap();
        self.coordinator.retire();
        self.coordinator.stop();
        from.node.hang_up(self.coordinator.bequeath(slots));
        let role = ResourceId::Coordinator(VOLUME);
        let epoch = from.seat.holder(&role).unwrap().epoch;
        from.seat.release(&role, from.client, epoch).unwrap();
    }

    pub fn node(&self, number: usize) -> &Node {
        &self.members[number].node
    }

    pub fn session(&self, number: usize) -> SessionId {
        self.members[number].seat.session()
    }

    /// The session of a node is over, as the realm sees it.
    pub fn end(&self, number: usize, standing: Standing) {
        self.realm.set(self.session(number), standing);
        self.coordinator.look();
    }

    pub fn create(&self, number: usize, name: &str) -> Opened {
        self.create_in(number, Ino::ROOT, name)
    }

    pub fn create_in(&self, number: usize, parent: Ino, name: &str) -> Opened {
        let node = self.node(number);
        wait(|done| node.create_open(WHO, parent, name.as_bytes(), 0o644, READ_WRITE, done)).unwrap()
    }

    pub fn open(&self, number: usize, ino: Ino) -> HandleId {
        wait(|done| self.node(number).open(ino, READ_WRITE, done)).unwrap().handle
    }

    pub fn lookup(&self, number: usize, name: &str) -> Result<Attr, Refusal> {
        wait(|done| self.node(number).lookup(Ino::ROOT, name.as_bytes(), done))
    }

    pub fn attr(&self, number: usize, ino: Ino) -> Result<Attr, Refusal> {
        wait(|done| self.node(number).get_attr(ino, done))
    }

    pub fn set_mode(&self, number: usize, ino: Ino, mode: u32) -> Attr {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        wait(|done| self.node(number).set_attr(ino, set, None, done)).unwrap()
    }

    pub fn write(&self, number: usize, handle: HandleId, offset: u64, data: &[u8]) {
        let mode = WriteMode::default();
        let at = wait(|done| self.node(number).write(handle, offset, slice(data), mode, done)).unwrap();
        assert_eq!(at, offset);
    }

    pub fn append(&self, number: usize, handle: HandleId, data: &[u8]) -> u64 {
        let mode = WriteMode { append: true, ..WriteMode::default() };
        wait(|done| self.node(number).write(handle, 0, slice(data), mode, done)).unwrap()
    }

    pub fn read(&self, number: usize, handle: HandleId, offset: u64, len: u32) -> Vec<u8> {
        bytes(&wait(|done| self.node(number).read(handle, offset, len, done)).unwrap())
    }

    pub fn acquire(&self, number: usize, ino: Ino) -> Result<(), Refusal> {
        self.acquire_all(number, &[ino])
    }

    pub fn acquire_all(&self, number: usize, files: &[Ino]) -> Result<(), Refusal> {
        wait(|done| self.node(number).acquire(files.to_vec(), done)).map_err(|refusal| refusal.why)
    }

    pub fn pin(&self, number: usize, files: &[Ino]) -> Result<Option<Epoch>, SetRefusal> {
        wait(|done| self.node(number).pin(files.to_vec(), None, done))
    }

    pub fn unpin(&self, number: usize, files: &[Ino]) -> Result<(), Refusal> {
        wait(|done| self.node(number).unpin(files.to_vec(), done))
    }

    /// Offers `files` of node `from` to node `to`, which takes them; what became of it, as `from` knows it.
    pub fn transfer(&self, from: usize, files: &[Ino], to: usize) -> Result<Option<Given>, Refusal> {
        let cookie = self.offer(from, files, to);
        let taken = self.take(to, files, cookie);
        let given = self.close_offer(from, cookie);
        // Who gives knows it for certain; who takes may have lost its way to the coordinator.
        if given.is_err() || matches!(given, Ok(None)) {
            taken.unwrap_err();
        }
        given
    }

    pub fn offer(&self, from: usize, files: &[Ino], to: usize) -> Cookie {
        self.offer_in(from, files, to, None)
    }

    /// The same, if they are owned in that epoch.
    pub fn offer_in(&self, from: usize, files: &[Ino], to: usize, epoch: Option<Epoch>) -> Cookie {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let cookie = Cookie(u128::from(NEXT.fetch_add(1, Ordering::SeqCst)));
        let files = files.iter().copied().collect();
        self.node(from).offer(Offer { cookie, files, to: self.session(to), with_locks: false, epoch });
        cookie
    }

    /// Whether an offer has been taken up.
    pub fn is_taken(&self, number: usize, cookie: Cookie) -> bool {
        self.node(number).core.offers.lock().is_taken(cookie)
    }

    pub fn take(&self, number: usize, files: &[Ino], cookie: Cookie) -> Result<Option<Epoch>, SetRefusal> {
        wait(|done| self.node(number).pin(files.to_vec(), Some(cookie), done))
    }

    pub fn close_offer(&self, number: usize, cookie: Cookie) -> Result<Option<Given>, Refusal> {
        wait(|done| self.node(number).close_offer(cookie, done))
    }

    /// Who owns a file, and in which epoch.
    pub fn owner(&self, ino: Ino) -> Option<(ClientId, Epoch)> {
        let holding = self.members[self.home].seat.holder(&ResourceId::File(VOLUME, ino.0));
        holding.map(|holding| (holding.client, holding.epoch))
    }

    /// Ends all nodes cleanly, the coordinator's last, and checks the store.
    pub fn finish(self) {
        let is_live = |member: &&Member| self.realm.standing(member.seat.session()) == Standing::Live;
        let guests = self.members.iter().enumerate().filter(|(number, _)| *number != self.home);
        let guests = guests.map(|(_, member)| member).filter(is_live);
        for member in guests.chain([&self.members[self.home]]) {
            wait(|done| member.node.shut_down(done)).unwrap();
        }
        for member in self.members.iter().filter(is_live) {
            self.coordinator.end_client(member.client).unwrap();
        }
        self.coordinator.reclaim().unwrap();
        self.coordinator.stop();
        let region = Run { start: LunBlock(FIRST), len: self.platter.geometry().size / 4096 - FIRST };
        let findings = check(&self.database, &KEY, &[region], &mut |_, _, _| {}).unwrap();
        assert!(findings.is_clean(), "{findings}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.network.end();
    }
}
