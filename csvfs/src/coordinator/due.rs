//! What the writer owes: answers that wait for the commit, and for those who have to hear of the change first (V9).

use std::sync::Arc;

use lockd::ids::ClientId;
use lockd::network::OnReply;
use lockd::rules::Rule;

use super::clients::Wait;
use super::core::Core;
use super::queue::OnInternal;
use crate::proto::codec::encode;
use crate::proto::{Answer, Answered, Created, Key, Operation, Reply};
use crate::refusal::Refusal;
use crate::types::{Attr, Ino};

/// The frame of a reply that nothing goes with.
pub fn frame(reply: &Reply) -> Vec<u8> {
    encoded(&Answered::from(reply.clone()))
}

/// The frame of a reply.
pub fn encoded(answer: &Answered) -> Vec<u8> {
    encode(answer).unwrap_or_else(|error| {
        let refused: Reply = Err(Refusal::Io(format!("the answer cannot be sent: {error}")));
        encode(&Answered::from(refused)).unwrap_or_default()
    })
}

/// An answer that waits for the commit.
pub enum Due {
    /// As it is.
    Reply(OnReply, Vec<u8>),
    /// Of a change that has touched something.
    Change(OnReply, Box<Changed>),
    /// The reply of an earlier copy, which may not have been answered yet.
    Repeated(OnReply, Vec<u8>, (ClientId, u32)),
    /// Of the coordinator's own work.
    Internal(OnInternal, Option<u64>),
}

impl Due {
    /// It is committed.
    pub fn give(self, core: &Arc<Core>) {
        match self {
            Self::Reply(on_reply, frame) => on_reply(Ok(frame)),
            Self::Internal(done, value) => done(Ok(value)),
            Self::Change(on_reply, changed) => {
                // V9: committed, and answered when nobody has the old state in its cache any more. The writer goes on.
                let slot = changed.slot;
                let held = Arc::clone(core);
                let wait = Wait::new(Box::new(move || {
                    let answers = held.held.lock().remove(&slot).unwrap_or_default();
                    answers.into_iter().for_each(|(on_reply, frame)| on_reply(Ok(frame)));
                }));
                let (frame, noted) = changed.conclude(core, &wait);
                core.held.lock().insert(slot, vec![(on_reply, frame)]);
                core.clients.tell(noted);
                wait.over();
            }
            Self::Repeated(on_reply, frame, slot) => {
                let mut held = core.held.lock();
                if let Some(waiting) = held.get_mut(&slot) {
                    waiting.push((on_reply, frame));
                    return;
                }
                drop(held);
                on_reply(Ok(frame));
            }
        }
    }

    /// What it would have said did not become durable.
    pub fn fail(self, refusal: &Refusal) {
        match self {
            Self::Reply(on_reply, _) | Self::Change(on_reply, _) | Self::Repeated(on_reply, ..) => {
                on_reply(Ok(frame(&Err(refusal.clone()))));
            }
            Self::Internal(done, _) => done(Err(refusal.clone())),
        }
    }
}

/// A change that is committed.
pub struct Changed {
    /// As it is kept in the slot: without leases.
    pub answered: Answered,
    /// The directories that it has changed, as they are after it.
    pub directories: Vec<Attr>,
    /// What is not as before.
    pub touched: Vec<Key>,
    /// Who has asked, and in which slot.
    pub slot: (ClientId, u32),
    /// What it has made.
    pub making: Making,
}

/// What an operation makes or takes away, as far as its asker knows it afterwards by the answer.
#[derive(Default)]
pub struct Making {
    /// The name of which it is told what it stands for.
    name: Option<Key>,
    /// The directory of which it is told all that happens to its names.
    within: Option<Ino>,
    /// Whether that is a new directory, without names.
    is_directory: bool,
}

impl Making {
    /// Of this operation.
    pub fn of(operation: &Operation) -> Self {
        match operation {
            Operation::Create { parent, name, what, .. } => Self {
                name: Some(Key::Name { parent: *parent, name: name.clone() }),
                within: Some(*parent),
                is_directory: *what == Created::Directory,
            },
            Operation::Unlink { parent, .. } | Operation::RemoveDirectory { parent, .. } => {
                Self { within: Some(*parent), ..Self::default() }
            }
            _ => Self::default(),
        }
    }
}

impl Changed {
    /// Takes back what it has made old, and grants the asker what it has made: in the writer's thread, before the next
    /// change. The frame of the answer, and who has to be told; it is given when `wait` is over.
    fn conclude(self, core: &Core, wait: &Arc<Wait>) -> (Vec<u8>, Vec<ClientId>) {
        let Self { mut answered, directories, touched, slot: (client, _), making } = self;
        if !core.clients.any() || !core.parts.rules.keeps(Rule::V9) {
            return (encoded(&answered), Vec::new());
        }
        let made = match &answered.reply {
            Ok(Answer::Entry(attr) | Answer::Opened { attr, .. }) if making.name.is_some() => Some(attr.ino),
            _ => None,
        };
        let (new, all_names, granted, noted) = {
            // Whoever opens the new file for writing, its server at the first write among them, comes before this and is
            // seen, or after it and takes the lease back.
            let opens = core.opens.lock();
            let new = made.filter(|ino| !opens.is_open(*ino) || opens.is_only_holder(*ino, client));
            let mut leases = core.leases.lock();
            let knew = making.within.filter(|directory| leases.holds(client, &Key::Names(*directory)));
            let all_names: Vec<Ino> = knew.into_iter().chain(made.filter(|_| making.is_directory)).collect();
            let attrs = new.into_iter().chain(directories.iter().map(|attr| attr.ino)).map(Key::Attr);
            let names = all_names.iter().copied().map(Key::Names);
            let granted: Vec<Key> = making.name.iter().cloned().chain(attrs).chain(names).collect();
            let told = leases.take(&touched, Some(client));
            let mut noted = core.clients.note(&touched, told, Some(client), wait);
            let back = if granted.is_empty() { None } else { core.grant_in(&mut leases, client, &granted) };
            let is_granted = back.is_some();
            noted.extend(back.unwrap_or_default());
            (new, all_names, is_granted, noted)
        };
        if granted {
            answered.leased_name = making.name.is_some();
            answered.leased_attr = new.is_some();
            answered.directories = directories;
            answered.all_names = all_names;
        }
        (encoded(&answered), noted)
    }
}
