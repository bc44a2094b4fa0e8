//! Questions, answered with leases to those who may have some (V9).

use std::sync::Arc;

use super::core::Core;
use super::question;
use super::stop::Stop;
use crate::proto::{Answer, Answered, Head, Key, Operation, Reply};
use crate::refusal::Refusal;
use crate::store::{Snapshot, StoreError};
use crate::types::{Attr, Kind};

/// An answer whose state is no longer the last one is asked for again so many times; then it is given without leases.
const TRIES: usize = 4;
/// How often a question is asked anew because the database has failed meanwhile.
const ASK_AGAIN_MAX: u32 = 3;

/// The reply of the last committed state, and that state. Where the database has failed, over a page of this question or
/// over another one, it is opened once more; what fails for its own sake then is refused.
fn ask(core: &Core, operation: &Operation) -> Result<(Arc<Snapshot>, Reply), Refusal> {
    let mut again = 0;
    loop {
        let asked = core.snapshot().map_err(Stop::from).and_then(|snapshot| {
            match question::answer(&snapshot, &core.parts.key, operation) {
                Err(Stop::Broken(error)) => Err(Stop::Broken(error)),
                result => Ok((snapshot, result.map_err(Stop::refusal))),
            }
        });
        match asked {
            Err(Stop::Broken(error @ StoreError::Database(_))) => {
                let of_another = matches!(
                    &error,
                    StoreError::Database(cause) if matches!(**cause, redb::Error::PreviousIo)
                );
                core.store_failed(&error);
                if again == ASK_AGAIN_MAX || (again > 0 && !of_another) {
                    return Err(Refusal::Io(error.to_string()));
                }
                again += 1;
            }
            asked => return asked.map_err(Stop::refusal),
        }
    }
}

/// Answers a question from the last committed state.
pub fn answer(core: &Arc<Core>, head: &Head, operation: &Operation) -> Answered {
    let knows = core.clients.knows(head.client);
    for attempt in 0..TRIES {
        let (snapshot, reply) = match ask(core, operation) {
            Ok(asked) => asked,
            Err(refusal) => return Answered::from(Err(refusal)),
        };
        let mut answered = Answered::from(reply);
        if !knows {
            return answered;
        }
        let (name, attr) = keys(operation, &answered.reply);
        let granted: Vec<Key> = name.iter().chain(&attr).cloned().collect();
        if attempt + 1 < TRIES && !granted.is_empty() && core.grant(head.client, &granted) {
            // A change that commits from now on finds the leases; one that has committed makes the answer old.
            if !core.is_current(&snapshot) {
                continue;
            }
            (answered.leased_name, answered.leased_attr) = (name.is_some(), attr.is_some());
        }
        // After the grant: who opens for writing takes the lease of the attributes back, or is seen here.
        elsewhere(core, head, &mut answered);
        return answered;
    }
    unreachable!("the last attempt returns");
}

/// What the asker of a question comes to know.
fn keys(operation: &Operation, reply: &Reply) -> (Option<Key>, Option<Key>) {
    let attr = match reply {
        Ok(Answer::Entry(attr)) => Some(Key::Attr(attr.ino)),
        _ => None,
    };
    match operation {
        Operation::Lookup { parent, name } if matches!(reply, Ok(_) | Err(Refusal::NotFound)) => {
            (Some(Key::Name { parent: *parent, name: name.clone() }), attr)
        }
        Operation::GetAttr { .. } => (None, attr),
        _ => (None, None),
    }
}

/// Size and times of a file that is open for writing are known by its server alone.
fn elsewhere(core: &Core, head: &Head, answered: &mut Answered) {
    let home = core.home();
    match &mut answered.reply {
        Ok(Answer::Entry(attr)) if attr.kind == Kind::File => {
            let (is_written, term) = {
                let opens = core.opens.lock();
                (opens.is_written(attr.ino), opens.term(attr.ino, home))
            };
            if !is_written {
                return;
            }
            // The lease stays noted: the asker may have it from before, as who has made the file.
            answered.leased_attr = false;
            let attr: Attr = *attr;
            if term.is_none_or(|term| term.client != head.client) {
                answered.reply = Ok(Answer::Elsewhere(attr, term));
            }
        }
        Ok(Answer::Directory { entries, .. }) => {
            let opens = core.opens.lock();
            for entry in entries.iter_mut().filter(|entry| entry.attr.is_some() && entry.kind == Kind::File) {
                let is_served = || opens.term(entry.ino, home).is_some_and(|term| term.client == head.client);
                if opens.is_written(entry.ino) && !is_served() {
                    entry.attr = None;
                }
            }
        }
        _ => {}
    }
}
