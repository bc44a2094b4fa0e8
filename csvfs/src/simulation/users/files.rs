//! What is done to files: opened, written, read, synced, acquired, cut off, replaced.

use std::sync::Arc;

use rand::Rng;

use super::{FILES, READ_WRITE, USERS, Users, WHO, What, bytes, file_name, slice};
use crate::node::SetRefusal;
use crate::proto::SetAttr;
use crate::refusal::Refusal;
use crate::service::{FileService, HandleId, ReadData, WriteMode};
use crate::simulation::member::Member;
use crate::simulation::model::{Place, SHARED_BLOCKS};
use crate::simulation::world::World;
use crate::types::{Attr, Ino};

impl Users {
    pub(super) fn use_file(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize) {
        // What has lost its name meanwhile is read for a while, and closed.
        let old = {
            let state = self.state.lock();
            let handles = member.handles.lock();
            let mut of_user = handles.iter().filter(|((_, of), _)| *of == user);
            of_user
                .find(|((file, _), _)| !state.is_current(*file))
                .map(|((file, _), handle)| (*file, *handle))
        };
        if let Some((file, handle)) = old
            && world.schedule.happens(0.5)
        {
            let closes = world.schedule.happens(0.2);
            if closes {
                member.handles.lock().remove(&(file, user));
            }
            return self.read(world, member, user, file, handle, closes);
        }
        let positions: Vec<usize> = (0..FILES).filter(|position| position % USERS == user).collect();
        let position = positions[world.schedule.draw(|random| random.random_range(0..positions.len()))];
        let (file, ino, is_closed, in_flight) = {
            let state = self.state.lock();
            // One that is unknown to all since its user died has no place any more.
            let Some(file) = state.current[position] else {
                drop(state);
                return self.make_file(world, member, user, position);
            };
            let known = &state.files[&file];
            (file, known.ino, known.is_closed, known.in_flight)
        };
        if is_closed {
            return self.step_later(world, member, user);
        }
        let handle = member.handles.lock().get(&(file, user)).copied();
        let Some(handle) = handle else { return self.open(world, member, user, file, ino) };
        let may_have_lost = self.state.lock().model(file).may_have_lost(member.number);
        if may_have_lost && world.schedule.happens(0.8) {
            return self.sync(world, member, user, file, handle);
        }
        match world.schedule.draw(|random| random.random_range(0..100)) {
            0..32 => {
                let block = world.schedule.draw(|random| random.random_range(0..SHARED_BLOCKS));
                let is_raced = world.schedule.happens(0.4);
                let own = Place::Shared { block, node: member.number };
                let place = if is_raced { Place::raced(block) } else { own };
                self.write(world, member, user, file, handle, place);
            }
            32..48 => self.write(world, member, user, file, handle, Place::Own { node: member.number }),
            48..70 => self.read(world, member, user, file, handle, false),
            70..79 => self.sync(world, member, user, file, handle),
            79..91 => self.acquire(world, member, user, file, ino),
            91..93 => {
                member.handles.lock().remove(&(file, user));
                self.state.lock().model(file).unsynced(member.number);
                member.node.release(handle);
                self.step_later(world, member, user);
            }
            93..96 if in_flight == 0 => self.cut(world, member, user, file, ino),
            96..100 if in_flight == 0 => self.replace(world, member, user, file),
            _ => self.read(world, member, user, file, handle, false),
        }
    }

    fn open(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize, file: u16, ino: Ino) {
        let done = self.go(world, member, user, What::Open(file), move |users, world, member, _, opened| {
            match opened {
                Ok(opened) => {
                    let opened: crate::service::Opened = opened;
                    member.handles.lock().insert((file, user), opened.handle);
                }
                // It has lost its name meanwhile.
                Err(Refusal::NotFound) if !users.state.lock().is_current(file) => {}
                Err(refusal) => users.refused(world, "open", &refusal),
            }
        });
        member.node.open(ino, READ_WRITE, done);
    }

    fn write(
        self: &Arc<Self>,
        world: &Arc<World>,
        member: &Arc<Member>,
        user: usize,
        file: u16,
        handle: HandleId,
        place: Place,
    ) {
        let written = self.state.lock().model(file).begin(place);
        let count = usize::try_from(place.len() / 8).expect("a block");
        let data = written.word.bytes().repeat(count);
        let what = What::Write(file, written);
        let done =
            self.go(world, member, user, what, move |users, world, _, operation, result| match result {
                Ok(at) => {
                    let at: u64 = at;
                    assert_eq!(at, place.offset());
                    let (session, mut state) = (operation.session, users.state.lock());
                    match world.lockd.is_live(session) {
                        true => state.model(file).acknowledged(written),
                        // It stood still between the LUN's answer and its own, and is lost with what it has not committed.
                        false => state.model(file).lingers(written, session),
                    }
                }
                Err(Refusal::NoSpace) if world.plan.is_scant() => {
                    users.state.lock().model(file).undone(written)
                }
                Err(refusal) => {
                    let (session, mut state) = (operation.session, users.state.lock());
                    match world.lockd.is_live(session) {
                        true => state.model(file).refused(written),
                        false => state.model(file).lingers(written, session),
                    }
                    drop(state);
                    users.refused(world, "write", &refusal);
                }
            });
        let sync = world.schedule.happens(0.05);
        member.node.write(
            handle,
            place.offset(),
            slice(&data),
            WriteMode { sync, ..WriteMode::default() },
            done,
        );
    }

    fn read(
        self: &Arc<Self>,
        world: &Arc<World>,
        member: &Arc<Member>,
        user: usize,
        file: u16,
        handle: HandleId,
        closes: bool,
    ) {
        let certain = self.state.lock().model(file).certain();
        let what = What::Read(file);
        let done = self.go(world, member, user, what, move |users, world, member, operation, result| {
            match result {
                Ok(data) => {
                    let data: ReadData = data;
                    let checked = users.state.lock().model(file).check(&bytes(&data), &certain);
                    if let Err(wrong) = checked {
                        world.schedule.fail(format!("node {} has read: {wrong}", member.number));
                    }
                }
                Err(Refusal::NotFound) if world.lockd.is_live(operation.session) => {
                    let node = member.number;
                    world
                        .schedule
                        .fail(format!("node {node} has file {file} open, which is not there any more"));
                }
                Err(refusal) => users.refused(world, "read", &refusal),
            }
            if closes {
                users.state.lock().model(file).unsynced(member.number);
                member.node.release(handle);
            }
        });
        member.node.read(handle, 0, 64 << 10, done);
    }

    fn sync(
        self: &Arc<Self>,
        world: &Arc<World>,
        member: &Arc<Member>,
        user: usize,
        file: u16,
        handle: HandleId,
    ) {
        let certain = self.state.lock().model(file).certain();
        let what = What::Sync(file);
        let done = self.go(world, member, user, what, move |users, world, member, _, result| {
            let mut state = users.state.lock();
            match result {
                Ok(()) => state.model(file).synced(member.number, &certain),
                Err(refusal) => {
                    state.model(file).unsynced(member.number);
                    drop(state);
                    users.refused(world, "sync", &refusal);
                }
            }
        });
        member.node.sync(handle, done);
    }

    fn acquire(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize, file: u16, ino: Ino) {
        let done =
            self.go(
                world,
                member,
                user,
                What::Acquire(file),
                move |users, world, _, _, result| match result {
                    Ok(()) | Err(Refusal::Busy(_) | Refusal::Passing(_)) => {}
                    Err(Refusal::NotFound) if !users.state.lock().is_current(file) => {}
                    Err(refusal) => users.refused(world, "acquire", &refusal),
                },
            );
        let done =
            Box::new(move |result: Result<(), SetRefusal>| done(result.map_err(|refusal| refusal.why)));
        member.node.acquire(vec![ino], done);
    }

    /// Cuts a file off that nobody uses meanwhile.
    fn cut(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize, file: u16, ino: Ino) {
        self.state.lock().files.get_mut(&file).expect("known").is_closed = true;
        let size = world.schedule.draw(|random| random.random_range(0..=SHARED_BLOCKS * 8)) * 512;
        let what = What::Cut(file, size);
        let done = self.go(world, member, user, what, move |users, world, _, operation, result| {
            let mut state = users.state.lock();
            state.files.get_mut(&file).expect("known").is_closed = false;
            match result {
                Ok(attr) => {
                    let attr: Attr = attr;
                    assert_eq!(attr.size, size, "the size after a truncation");
                    state.model(file).cut(size);
                }
                Err(refusal) => {
                    // The node's session may have ended before it was told.
                    state.model(file).may_be_cut(size, operation.session);
                    state.retire(file);
                    drop(state);
                    users.refused(world, "truncate", &refusal);
                }
            }
        });
        member.node.set_attr(ino, SetAttr::default(), Some(size), done);
    }

    /// Takes a file's name away, which others may have open, and puts a new file into its place.
    fn replace(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize, file: u16) {
        let name = {
            let mut state = self.state.lock();
            let known = state.files.get_mut(&file).expect("known");
            known.is_closed = true;
            known.name.clone()
        };
        let what = What::Replace(file);
        let done = self.go(world, member, user, what, move |users, world, _, _, result| {
            let mut state = users.state.lock();
            state.files.get_mut(&file).expect("known").is_closed = false;
            state.retire(file);
            drop(state);
            if let Err(refusal) = result {
                let _: () = users.refused(world, "unlink", &refusal);
            }
        });
        member.node.unlink(Ino::ROOT, &name, done);
    }

    /// A new file in the place of one that has none any more.
    fn make_file(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize, position: usize) {
        let file = {
            let mut state = self.state.lock();
            state.new_file(Ino(u64::MAX))
        };
        let name = file_name(file);
        let done =
            self.go(
                world,
                member,
                user,
                What::Open(file),
                move |users, world, member, _, opened| match opened {
                    Ok(opened) => {
                        let opened: crate::service::Opened = opened;
                        let mut state = users.state.lock();
                        state.files.get_mut(&file).expect("known").ino = opened.attr.ino;
                        state.current[position].get_or_insert(file);
                        drop(state);
                        member.handles.lock().insert((file, user), opened.handle);
                    }
                    Err(refusal) => users.refused(world, "create", &refusal),
                },
            );
        member.node.create_open(WHO, Ino::ROOT, &name, 0o644, READ_WRITE, done);
    }
}
