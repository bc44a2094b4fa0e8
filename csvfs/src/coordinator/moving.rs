//! Files that change servers: as many as one server has, together, all or none.

use std::sync::Arc;

use lockd::authority::Holding;
use lockd::failpoint;
use lockd::ids::{ClientId, ResourceId, SessionId};
use lockd::machine::MOVES_MAX;
use lockd::rules::Rule;

use super::core::Core;
use super::memory::Finish;
use super::opens::{Opens, Owner, Rest};
use crate::proto::{Answer, CallAnswer, Callback, Claim, FileSlots, Key, Next, Term};
use crate::refusal::Refusal;
use crate::types::Ino;

/// Files of one server that have been marked as moving.
struct Journey {
    number: u64,
    server: Term,
    /// With the terms that are to end.
    files: Vec<(Ino, u64)>,
    next: Option<Next>,
    /// The files that were asked for and need not move.
    settled: Vec<Ino>,
    soft: bool,
}

impl Journey {
    fn inos(&self) -> Vec<Ino> {
        self.files.iter().map(|(ino, _)| *ino).collect()
    }
}

/// Files whose server has gone without an answer. It may have handed them over to the one who was to have them, who gives
/// back what he does not take up: until he has, nobody else serves them (L7).
#[derive(Debug)]
pub struct Doubt {
    journey: u64,
    files: Vec<Ino>,
    next: ClientId,
}

/// What has to be done about files that were asked for.
enum Plan {
    /// Nothing: these are as they are to be.
    Settled(Vec<Ino>),
    /// These move.
    Moves(Journey),
}

fn on_its_way(ino: Ino) -> Refusal {
    Refusal::Passing(format!("{ino} is on its way to another node"))
}

/// Moves files to the asker: their server yields, then the asker owns them.
pub fn acquire(core: &Arc<Core>, files: &[Ino], claim: Claim, finish: Finish) {
    let (session, client) = (finish.head.session, finish.head.client);
    let home = core.home();
    let next = Next { session, client, pinned: claim.pinned, offer: claim.offer };
    let plan = {
        let mut opens = core.opens.lock();
        check_claim(&opens, files, client, &claim, home)
            .and_then(|()| plan(&mut opens, files, Some(next), claim, home))
    };
    follow(core, plan, finish);
}

/// Makes files nobody's: the coordinator's node serves them.
pub fn release(core: &Arc<Core>, files: &[Ino], finish: Finish) {
    let claim = Claim { automatic: false, pinned: false, offer: None };
    let home = core.home();
    let plan = plan(&mut core.opens.lock(), files, None, claim, home);
    follow(core, plan, finish);
}

fn check_claim(
    opens: &Opens,
    files: &[Ino],
    client: ClientId,
    claim: &Claim,
    home: (SessionId, ClientId),
) -> Result<(), Refusal> {
    for ino in files {
        if !opens.is_holder(*ino, client) {
            return Err(Refusal::Invalid(format!("{client} does not hold {ino} open")));
        }
        let has_it = opens.is_owner(*ino, client);
        if claim.automatic && !has_it && opens.is_written_by_others(*ino, client, home.1) {
            return Err(Refusal::Busy(format!("others have {ino} open for writing")));
        }
    }
    Ok(())
}

/// Marks those of `files` as moving that the first server has which has to give some away.
fn plan(
    opens: &mut Opens,
    files: &[Ino],
    next: Option<Next>,
    claim: Claim,
    home: (SessionId, ClientId),
) -> Result<Plan, Refusal> {
    // Looked at again under the lock: whoever has seen that nothing moves hands on what rests.
    if opens.is_quiet() {
        return Err(Refusal::Passing("another mount is to coordinate the volume".to_owned()));
    }
    let (mut settled, mut moving, mut server) = (Vec::new(), Vec::new(), None::<Term>);
    for ino in files {
        let Some(term) = opens.term(*ino, home) else {
            match next {
                // Nobody has it open any more: it is nobody's.
                None if !opens.is_open(*ino) => settled.push(*ino),
                // Those of one server are asked for again by and by, a set that was offered is asked for once.
                _ if server.is_some() && claim.offer.is_none() => {}
                _ => return Err(on_its_way(*ino)),
            }
            continue;
        };
        let is_settled = match next {
            Some(next) => term.client == next.client && (term.owned.is_some() || claim.automatic),
            None => term.owned.is_none(),
        };
        if is_settled {
            settled.push(*ino);
        } else if server.get_or_insert(term).client == term.client {
            moving.push((*ino, term.tenure));
        } else if claim.offer.is_some() {
            return Err(Refusal::Busy(format!(
                "{ino} has gone to another node meanwhile; look and try again"
            )));
        }
    }
    let Some(server) = server else { return Ok(Plan::Settled(settled)) };
    if claim.offer.is_none() {
        moving.truncate(MOVES_MAX);
    }
    let inos: Vec<Ino> = moving.iter().map(|(ino, _)| *ino).collect();
    let Some(number) = opens.depart(&inos) else {
        return Err(Refusal::Busy("a file is named twice, or on its way to another node".to_owned()));
    };
    let soft = claim.automatic;
    Ok(Plan::Moves(Journey { number, server, files: moving, next, settled, soft }))
}

fn follow(core: &Arc<Core>, plan: Result<Plan, Refusal>, finish: Finish) {
    match plan {
        Ok(Plan::Moves(journey)) => depart(core, journey, finish),
        Ok(Plan::Settled(settled)) => finish.reply(Ok(Answer::Moved(settled))),
        Err(refusal) => finish.reply(Err(refusal)),
    }
}

/// Asks the server of files that have been marked as moving to yield.
fn depart(core: &Arc<Core>, journey: Journey, finish: Finish) {
    let Journey { number, server, next, soft, .. } = journey;
    let callback = Callback::Yield { journey: number, files: journey.files.clone(), soft, next };
    let owner = Arc::clone(core);
    let moved = move |answer: Result<CallAnswer, Refusal>| {
        let refusal = match answer {
            Ok(CallAnswer::Yielded { epoch, slots }) if epoch.is_some() == journey.next.is_some() => {
                let to = journey.next.zip(epoch).map(|(Next { session, client, .. }, epoch)| Owner {
                    session,
                    client,
                    epoch,
                });
                return arrived(&owner, &journey, to, slots, finish);
            }
            Ok(CallAnswer::Refused(refusal)) => refusal,
            Err(_) => return is_lost(&owner, &journey, finish),
            Ok(_) => Refusal::Io("the server of a file gave an answer that does not fit".to_owned()),
        };
        let told = owner.opens.lock().rest(&journey.inos(), number, Rest::Stays);
        owner.rested(told);
        finish.reply(Err(refusal));
    };
    failpoint::reached("move.begun");
    core.clients.ask(server.client, callback, Box::new(moved));
    core.watch.wake();
}

/// Nobody knows what the last server has done, but the authority.
fn is_lost(core: &Core, journey: &Journey, finish: Finish) {
    let (number, files) = (journey.number, journey.inos());
    let why = "the node that served the files has gone meanwhile".to_owned();
    match journey.next.filter(|_| core.parts.rules.keeps(Rule::L7)) {
        Some(next) => {
            core.opens.lock().doubt(&files, number);
            // Once it is told, the next one gives back what it has got.
            finish.reply(Err(Refusal::Passing(why)));
            core.doubts.lock().push(Doubt { journey: number, files, next: next.client });
            core.watch.wake();
        }
        None => {
            let told = core.opens.lock().rest(&files, number, Rest::Stays);
            core.rested(told);
            finish.reply(Err(Refusal::Passing(why)));
        }
    }
}

/// Looks whether what was in doubt is not any more.
pub fn settle(core: &Core) {
    let doubts = std::mem::take(&mut *core.doubts.lock());
    for Doubt { journey, files, next } in doubts {
        let has_it = |ino: &Ino| {
            let resource = ResourceId::File(core.parts.volume, ino.0);
            core.parts.authority.confirmed_holder(&resource).is_some_and(|holding| holding.client == next)
        };
        let (open, settled): (Vec<Ino>, Vec<Ino>) = files.into_iter().partition(has_it);
        let told = core.opens.lock().rest(&settled, journey, Rest::Stays);
        core.rested(told);
        if !open.is_empty() {
            core.doubts.lock().push(Doubt { journey, files: open, next });
        }
    }
}

/// The last server has yielded: the next one serves from now on.
fn arrived(core: &Arc<Core>, journey: &Journey, to: Option<Owner>, slots: Vec<FileSlots>, finish: Finish) {
    failpoint::reached("move.yielded");
    let inos = journey.inos();
    let home = core.home();
    let next = to.map_or(home.1, |owner| owner.client);
    if let Some(Owner { session, client, epoch }) = to {
        // What it asks in this epoch is its right: nothing has to be looked up.
        let file = |ino: &Ino| ResourceId::File(core.parts.volume, ino.0);
        let resources: Vec<ResourceId> = inos.iter().map(file).collect();
        core.parts.authority.learn(&resources, Holding { session, client, epoch });
    }
    let told = {
        let mut opens = core.opens.lock();
        opens.handed_over(journey.number, slots);
        let rest = if next == journey.server.client { Rest::InPlace(to) } else { Rest::Moved(to) };
        opens.rest(&inos, journey.number, rest)
    };
    let keys: Vec<Key> = inos.iter().copied().map(Key::Attr).collect();
    let moved: Vec<Ino> = journey.settled.iter().copied().chain(inos).collect();
    let owner = Arc::clone(core);
    let then = move || {
        finish.reply(Ok(Answer::Moved(moved)));
        owner.rested(told);
    };
    // V9: acquiring takes back what others know of size and times.
    core.recall(&keys, Some(next), Box::new(then));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found: a file whose journey had begun beside the last look was not handed on to the next coordinator, which told its
    /// users that what they had written was lost.
    #[test]
    fn no_file_begins_to_move_when_another_mount_is_to_coordinate() {
        let (ino, home, other) = (Ino(7), (SessionId(1), ClientId(1)), (SessionId(2), ClientId(2)));
        let next = Next { session: other.0, client: other.1, pinned: false, offer: None };
        let claim = Claim { automatic: false, pinned: false, offer: None };
        let mut opens = Opens::new(0);
        opens.open(ino, other.1, true);
        opens.set_quiet(true);
        assert!(matches!(plan(&mut opens, &[ino], Some(next), claim, home), Err(Refusal::Passing(_))));
        assert!(!opens.is_any_moving());
        opens.set_quiet(false);
        assert!(matches!(plan(&mut opens, &[ino], Some(next), claim, home), Ok(Plan::Moves(_))));
        assert!(opens.is_any_moving());
    }
}
