//! What is done to names and modes, and what every node must say of them as soon as it has been done.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::{NAMES, Users, WHO, What};
use crate::proto::{Created, RenameMode, SetAttr};
use crate::refusal::Refusal;
use crate::service::FileService;
use crate::simulation::member::Member;
use crate::simulation::model::Named;
use crate::simulation::world::World;
use crate::types::Attr;

impl Users {
    pub(super) fn change_name(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize) {
        let index = world.schedule.draw(|random| random.random_range(0..NAMES));
        let (named, directories) = {
            let mut state = self.state.lock();
            if state.names[index].is_busy {
                drop(state);
                return self.step_later(world, member, user);
            }
            state.names[index].is_busy = true;
            (state.names[index].clone(), state.directories.clone())
        };
        let (here, there) = (directories[named.directory], directories[1 - named.directory]);
        let (node, name) = (&member.node, &named.name);
        let mode = world.schedule.draw(|random| random.random_range(0..0o1000));
        let Some((ino, _)) = named.inode else {
            let done = self.changed(world, member, user, index, |named: &mut Named, attr: Attr| {
                named.inode = Some((attr.ino, attr.mode));
            });
            return node.create(WHO, here, name, Created::Fifo, mode, done);
        };
        match world.schedule.draw(|random| random.random_range(0..5)) {
            0 | 1 => {
                let done = self.changed(world, member, user, index, move |named, _: Attr| {
                    named.inode = Some((ino, mode));
                });
                node.set_attr(ino, SetAttr { mode: Some(mode), ..SetAttr::default() }, None, done);
            }
            2 | 3 => {
                let done = self.changed(world, member, user, index, |named, ()| {
                    named.directory = 1 - named.directory;
                });
                node.rename(here, name, there, name, RenameMode::NoReplace, done);
            }
            _ => {
                let done = self.changed(world, member, user, index, |named, ()| named.inode = None);
                node.unlink(here, name, done);
            }
        }
    }

    /// A change of a name, that some node is asked about once it has been acknowledged.
    fn changed<T: Send + 'static>(
        self: &Arc<Self>,
        world: &Arc<World>,
        member: &Arc<Member>,
        user: usize,
        index: usize,
        change: impl FnOnce(&mut Named, T) + Send + 'static,
    ) -> crate::service::Done<T> {
        self.go(world, member, user, What::Name(index), move |users, world, member, _, result| match result {
            Ok(value) => {
                change(&mut users.state.lock().names[index], value);
                let members = world.mounted();
                let asked = world.schedule.draw(|random| random.random_range(0..members.len() + 1));
                users.ask_name(world, members.get(asked).unwrap_or(member), index);
            }
            Err(refusal) => {
                users.state.lock().forget_name(index);
                users.refused(world, "a change of a name", &refusal);
            }
        })
    }

    /// Asks a node what a name stands for, which nobody changes meanwhile.
    fn ask_name(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, index: usize) {
        let (named, directories) = {
            let state = self.state.lock();
            (state.names[index].clone(), state.directories.clone())
        };
        let number = self.state.lock().begin(member, What::Name(index));
        let (users, told, asked) = (Arc::clone(self), Arc::clone(world), Arc::clone(member));
        let place = world.schedule.draw(|random| random.random_range(0..2));
        let expected = named.clone();
        let done = move |found: Result<Attr, Refusal>| {
            if users.state.lock().end(number).is_none() {
                return;
            }
            users.state.lock().names[index].is_busy = false;
            users.judge_name(&told, asked.number, &expected, place, &found);
        };
        world.schedule.note("looks up", &[number, member.number as u64]);
        // In that node's process: whoever has the answer goes on, whatever becomes of it.
        let node = Arc::clone(&member.node);
        world.schedule.after_in(&member.party, Duration::ZERO, move || {
            node.lookup(directories[place], &named.name, Box::new(done));
        });
    }

    pub(super) fn judge_name(
        &self,
        world: &World,
        node: usize,
        named: &Named,
        place: usize,
        found: &Result<Attr, Refusal>,
    ) {
        let expected = named.inode.filter(|_| place == named.directory);
        let is_right = match (found, expected) {
            (Ok(attr), Some((ino, mode))) => (attr.ino, attr.mode) == (ino, mode),
            (Err(Refusal::NotFound), None) => true,
            (Err(refusal), _) if *refusal != Refusal::NotFound => {
                return self.refused(world, "lookup", refusal);
            }
            _ => false,
        };
        if !is_right {
            let found = found.as_ref().map(|attr| (attr.ino, attr.mode));
            world.schedule.fail(format!(
                "invariant 6: node {node} says of {:?} in directory {place}: {found:?}, and it is {expected:?}",
                String::from_utf8_lossy(&named.name)
            ));
        }
    }
}
