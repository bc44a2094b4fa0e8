//! What the users of the nodes do, and whether what they see is right.

mod files;
mod holdings;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use lockd::ids::{ClientId, SessionId};
use parking_lot::Mutex;
use rand::Rng;
use redirector::buffer::{Pool, Slice};

use super::holdings::Holdings;
use super::member::Member;
use super::model::{FileModel, Named, Written};
use super::world::World;
use crate::proto::Created;
use crate::refusal::Refusal;
use crate::service::{Credentials, FileService, OpenMode, Piece, ReadData};
use crate::types::Ino;

/// Users of one node. Each has its own files, so that a handle's syncs tell one user all that was lost.
const USERS: usize = 2;
/// Files in use at a time, and names.
const FILES: usize = 4;
/// See [`FILES`].
const NAMES: usize = 4;

const WHO: Credentials = Credentials { uid: 0, gid: 0, umask: 0 };
const READ_WRITE: OpenMode = OpenMode {
    read: true,
    write: true,
    direct: false,
    clear_set_id: false,
    truncate: false,
    exclusive: false,
    pid: 0,
};

#[derive(Debug)]
struct FileState {
    model: FileModel,
    ino: Ino,
    name: Vec<u8>,
    /// What is under way.
    in_flight: usize,
    /// Somebody changes all of it.
    is_closed: bool,
}

/// What is under way.
#[derive(Clone, Debug)]
enum What {
    Open(u16),
    Read(u16),
    Write(u16, Written),
    Sync(u16),
    Cut(u16, u64),
    Acquire(u16),
    Replace(u16),
    Name(usize),
    Lock,
    Machine,
}

#[derive(Clone, Debug)]
struct Operation {
    node: usize,
    session: SessionId,
    what: What,
}

/// Who was lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Lost {
    Session(SessionId),
    Mount(ClientId, SessionId),
}

#[derive(Default)]
struct State {
    nodes: usize,
    files: BTreeMap<u16, FileState>,
    /// Those that are in use, each in a place of one user of each node: the others have lost their names.
    current: [Option<u16>; FILES],
    last_file: u16,
    names: Vec<Named>,
    last_name: usize,
    directories: Vec<Ino>,
    holdings: Holdings,
    operations: BTreeMap<u64, Operation>,
    next: u64,
    /// Users who are not done, by session.
    busy: BTreeMap<SessionId, usize>,
    /// Steps that the next process of a node inherits.
    left: BTreeMap<usize, u64>,
    /// A session has ended: some operations fail.
    is_disturbed: bool,
    /// Who was lost, and is not fenced yet: sessions, and mounts under sessions that live.
    unfenced: BTreeSet<Lost>,
    sessions: BTreeMap<SessionId, usize>,
}

/// See the module.
pub struct Users {
    state: Mutex<State>,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Users")
    }
}

fn slice(data: &[u8]) -> Slice {
    let mut buffer = Pool::default().take(data.len());
    buffer.copy_from_slice(data);
    buffer.share()
}

fn bytes(data: &ReadData) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in &data.pieces {
        match piece {
            Piece::Bytes { buffer, skip, len } => all.extend_from_slice(&buffer[*skip..skip + len]),
            Piece::Zeros(len) => all.resize(all.len() + len, 0),
        }
    }
    all
}

impl State {
    fn begin(&mut self, member: &Member, what: What) -> u64 {
        self.next += 1;
        if let Some(file) = file_of(&what).and_then(|file| self.files.get_mut(&file)) {
            file.in_flight += 1;
        }
        let operation = Operation { node: member.number, session: member.session(), what };
        self.operations.insert(self.next, operation);
        self.next
    }

    fn end(&mut self, number: u64) -> Option<Operation> {
        let operation = self.operations.remove(&number)?;
        let is_settled = self.unfenced.is_empty();
        if let Some(file) = file_of(&operation.what).and_then(|file| self.files.get_mut(&file)) {
            file.in_flight -= 1;
            if file.in_flight == 0 && is_settled {
                file.model.resume();
            }
        }
        Some(operation)
    }

    /// Somebody is gone, who may have served any file.
    fn suspend(&mut self, whom: Lost) {
        self.unfenced.insert(whom);
        self.files.values_mut().for_each(|file| file.model.suspend());
    }

    /// The same, and the others act on it.
    fn lose(&mut self, whom: Lost) {
        self.suspend(whom);
        self.is_disturbed = true;
        self.files.values_mut().for_each(|file| file.model.lost());
    }

    fn model(&mut self, file: u16) -> &mut FileModel {
        &mut self.files.get_mut(&file).expect("files are never forgotten").model
    }

    /// Whether a file has its name and its place.
    fn is_current(&self, file: u16) -> bool {
        self.current.contains(&Some(file))
    }

    /// A file has lost its name, or what is in it is not known.
    fn retire(&mut self, file: u16) {
        self.current.iter_mut().filter(|place| **place == Some(file)).for_each(|place| *place = None);
    }

    /// A name of which nothing is known is not used any more.
    fn forget_name(&mut self, index: usize) {
        self.last_name += 1;
        let name = format!("name {}", self.last_name).into_bytes();
        self.names[index] = Named { name, inode: None, directory: 0, is_busy: false };
    }

    fn new_file(&mut self, ino: Ino) -> u16 {
        self.last_file += 1;
        let file = self.last_file;
        let name = file_name(file);
        let model = FileModel::new(file, self.nodes);
        self.files.insert(file, FileState { model, ino, name, in_flight: 0, is_closed: false });
        file
    }
}

fn file_name(file: u16) -> Vec<u8> {
    format!("file {file}").into_bytes()
}

fn name_of(what: &What) -> &'static str {
    match what {
        What::Open(_) => "opens",
        What::Read(_) => "reads",
        What::Write(..) => "writes",
        What::Sync(_) => "syncs",
        What::Cut(..) => "truncates",
        What::Acquire(_) => "acquires",
        What::Replace(_) => "unlinks",
        What::Name(_) => "changes a name",
        What::Lock => "locks",
        What::Machine => "a machine",
    }
}

fn file_of(what: &What) -> Option<u16> {
    match what {
        What::Open(file) | What::Read(file) | What::Write(file, _) | What::Sync(file) => Some(*file),
        What::Cut(file, _) | What::Acquire(file) | What::Replace(file) => Some(*file),
        What::Name(_) | What::Lock | What::Machine => None,
    }
}

impl Users {
    /// Users of so many nodes.
    pub fn new(nodes: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { nodes, ..State::default() }) })
    }

    /// Which inode a file's number stands for.
    pub fn inode(&self, file: u16) -> Option<Ino> {
        self.state.lock().files.get(&file).map(|file| file.ino)
    }

    /// Some operations may fail from now on.
    pub fn disturb(&self) {
        self.state.lock().is_disturbed = true;
    }

    /// Drops what it holds.
    pub fn end(&self) {
        *self.state.lock() = State::default();
    }

    /// The first node makes directories and files. Waits.
    pub fn make_files(&self, world: &World, member: &Member) {
        for name in ["one", "two"] {
            let made = member.wait(world, |node, done| {
                node.create(WHO, Ino::ROOT, name.as_bytes(), Created::Directory, 0o755, done);
            });
            self.state.lock().directories.push(made.expect("an empty volume").ino);
        }
        for number in 1..=FILES {
            let name = file_name(u16::try_from(number).expect("a few"));
            let made = member.wait(world, |node, done| {
                node.create_open(WHO, Ino::ROOT, &name, 0o644, READ_WRITE, done);
            });
            let made = made.expect("an empty volume");
            let mut state = self.state.lock();
            let file = state.new_file(made.attr.ino);
            state.current[number - 1] = Some(file);
            drop(state);
            member.node.release(made.handle);
        }
        let mut state = self.state.lock();
        for index in 0..NAMES {
            state.names.push(Named { name: Vec::new(), inode: None, directory: 0, is_busy: false });
            state.forget_name(index);
        }
    }

    /// The users of a process begin.
    pub fn begin(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>) {
        let steps = {
            let mut state = self.state.lock();
            state.busy.insert(member.session(), USERS);
            state.sessions.insert(member.session(), member.number);
            state.left.remove(&member.number).unwrap_or(world.plan.steps)
        };
        member.left.store(steps, SeqCst);
        for user in 0..USERS {
            self.step_later(world, member, user);
        }
    }

    /// The next process of a node has so many steps left.
    pub fn inherit(&self, number: usize, left: u64) {
        self.state.lock().left.insert(number, left);
    }

    /// A process has died: nobody learns what became of what was under way.
    pub fn left(&self, world: &World, member: &Member) {
        let mut state = self.state.lock();
        let session = member.session();
        if world.lockd.is_live(session) && !member.dies_alone.load(SeqCst) {
            state.suspend(Lost::Session(session));
        }
        state.busy.remove(&session);
        let of_it = state.operations.iter().filter(|(_, operation)| operation.session == session);
        let of_it: Vec<u64> = of_it.map(|(number, _)| *number).collect();
        for number in of_it {
            let Some(operation) = state.end(number) else { continue };
            match operation.what {
                What::Write(file, written) => state.model(file).lingers(written, session),
                What::Cut(file, size) => {
                    state.model(file).may_be_cut(size, session);
                    state.retire(file);
                }
                What::Replace(file) => state.retire(file),
                What::Name(index) => state.forget_name(index),
                What::Open(_) | What::Read(_) | What::Sync(_) | What::Acquire(_) => {}
                What::Lock | What::Machine => {}
            }
        }
        for file in state.files.values_mut() {
            file.model.unsynced(member.number);
        }
    }

    /// A session has ended, or is fenced: what was acknowledged by its node and not synced may be lost.
    pub fn lost(&self, session: SessionId, fenced: bool) {
        let mut state = self.state.lock();
        state.lose(Lost::Session(session));
        if fenced {
            let is_of_it = |lost: &Lost| match lost {
                Lost::Session(of) | Lost::Mount(_, of) => *of == session,
            };
            state.unfenced.retain(|lost| !is_of_it(lost));
            state.holdings.fenced(session);
            state.files.values_mut().for_each(|file| file.model.fenced(session));
        }
    }

    /// A mount is killed whose session lives: what it served and had not synced may be lost.
    pub fn mount_died(&self, mount: ClientId, session: SessionId) {
        let mut state = self.state.lock();
        state.lose(Lost::Mount(mount, session));
    }

    /// Nothing of such a mount reaches the LUN any more, and its locks are free.
    pub fn mount_fenced(&self, mount: ClientId) {
        let mut state = self.state.lock();
        let found = state.unfenced.iter().find(|lost| matches!(lost, Lost::Mount(of, _) if *of == mount));
        if let Some(Lost::Mount(_, session)) = found.copied() {
            state.unfenced.remove(&Lost::Mount(mount, session));
            state.holdings.mount_fenced(mount);
            state.files.values_mut().for_each(|file| file.model.lost());
        }
    }

    /// Reads that were held against what others wrote at the same time.
    pub fn raced(&self) -> u64 {
        self.state.lock().files.values().map(|file| file.model.raced).sum()
    }

    /// Whether the users of a session have done their steps.
    pub fn are_idle(&self, session: SessionId) -> bool {
        let state = self.state.lock();
        let is_busy = state.operations.values().any(|operation| operation.session == session);
        !is_busy && state.busy.get(&session).is_none_or(|users| *users == 0)
    }

    /// A mount is about to end: its users have closed all files, and count on nothing that may be lost.
    pub fn close_all(&self, member: &Member) {
        let handles = std::mem::take(&mut *member.handles.lock());
        handles.into_values().for_each(|handle| member.node.release(handle));
        let mut state = self.state.lock();
        state.files.values_mut().for_each(|file| file.model.unsynced(member.number));
        state.holdings.unmounts(member.session());
    }

    /// Whether all are done.
    pub fn are_done(&self) -> bool {
        let state = self.state.lock();
        state.operations.is_empty() && state.busy.values().all(|users| *users == 0)
    }

    /// What is under way, in words.
    pub fn under_way(&self) -> String {
        let state = self.state.lock();
        let of = |operation: &Operation| match &operation.what {
            What::Read(file) => format!("node {} reads {file}", operation.node),
            What::Write(file, written) => {
                format!("node {} writes {:?} of {file}", operation.node, written.place)
            }
            What::Sync(file) => format!("node {} syncs {file}", operation.node),
            other => format!("node {}: {other:?}", operation.node),
        };
        let all: Vec<String> = state.operations.values().map(of).collect();
        format!("{all:?}, users {:?}", state.busy)
    }

    fn step_later(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize) {
        let (users, world, member) = (Arc::clone(self), Arc::clone(world), Arc::clone(member));
        let rest = if world.plan.faults || world.plan.restarts { 300_000 } else { 3_000 };
        let rest = world.schedule.between(100, rest);
        let schedule = Arc::clone(&world.schedule);
        let party = Arc::clone(&member.party);
        schedule.after_in(&party, rest, move || users.step(&world, &member, user));
    }

    /// One thing more, or none.
    fn step(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize) {
        let took = member.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if took.is_err() {
            if let Some(users) = self.state.lock().busy.get_mut(&member.session()) {
                *users -= 1;
            }
            return;
        }
        match world.schedule.draw(|random| random.random_range(0..100)) {
            0..27 => self.change_name(world, member, user),
            27..32 => self.lock(world, member, user),
            32..36 => self.run_machine(world, member, user),
            _ => self.use_file(world, member, user),
        }
    }

    /// `refusal` instead of what was asked for: is that right?
    fn refused(&self, world: &World, what: &str, refusal: &Refusal) {
        if !self.state.lock().is_disturbed {
            world.schedule.fail(format!("refused without need: {what}: {refusal}"));
        }
    }

    /// Begins something, and lets `judge` look at how it ended before the user's next step.
    fn go<T: Send + 'static>(
        self: &Arc<Self>,
        world: &Arc<World>,
        member: &Arc<Member>,
        user: usize,
        what: What,
        judge: impl FnOnce(&Arc<Self>, &Arc<World>, &Arc<Member>, Operation, Result<T, Refusal>) + Send + 'static,
    ) -> crate::service::Done<T> {
        let (name, file) = (name_of(&what), file_of(&what).unwrap_or_default());
        let number = self.state.lock().begin(member, what);
        world.schedule.note(name, &[number, member.number as u64, u64::from(file)]);
        let (users, world, member) = (Arc::clone(self), Arc::clone(world), Arc::clone(member));
        Box::new(move |result| {
            world.schedule.note("ends", &[number, u64::from(result.is_ok())]);
            // Of a dead process nobody hears anything.
            let Some(operation) = users.state.lock().end(number) else { return };
            judge(&users, &world, &member, operation, result);
            users.step_later(&world, &member, user);
        })
    }

    /// Reads everything on one node, when nobody changes anything. Waits.
    ///
    /// # Errors
    /// What is wrong.
    pub fn look_at_all(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>) -> Result<(), String> {
        let handles = std::mem::take(&mut *member.handles.lock());
        handles.into_values().for_each(|handle| member.node.release(handle));
        let files: Vec<(u16, Ino)> = {
            let state = self.state.lock();
            state.current.iter().flatten().map(|file| (*file, state.files[file].ino)).collect()
        };
        for (file, ino) in files {
            let wrong = |refusal| format!("node {}, file {file}, at the end: {refusal}", member.number);
            let opened = member.wait(world, |node, done| node.open(ino, READ_WRITE, done)).map_err(wrong)?;
            let data = member.wait(world, |node, done| node.read(opened.handle, 0, 64 << 10, done));
            let data = bytes(&data.map_err(wrong)?);
            let mut state = self.state.lock();
            let certain = state.model(file).certain();
            state.model(file).check(&data, &certain).map_err(|wrong| format!("at the end: {wrong}"))?;
            drop(state);
            member.node.release(opened.handle);
        }
        let (names, directories) = {
            let state = self.state.lock();
            (state.names.clone(), state.directories.clone())
        };
        for named in &names {
            for (place, directory) in directories.iter().enumerate() {
                let found = member.wait(world, |node, done| node.lookup(*directory, &named.name, done));
                self.judge_name(world, member.number, named, place, &found);
            }
        }
        member.rest(world, Duration::from_millis(1));
        Ok(())
    }
}
