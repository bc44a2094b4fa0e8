//! What can happen next.

use stateright::{Model, Property};

use super::super::cluster::VOLUME;
use super::control::Message;
use super::properties;
use super::scene::{A, B, C, D, Life, Lingering, MOUNTS, Office, Request, Stage, Way};
use super::{Fence, Guard, Takeover, World};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Action {
    /// A message is sent to lockd.
    Send(Message),
    /// It reaches the leader and is applied.
    Apply(Message),
    /// The program asks for its next change, on the line that its node has.
    Ask(Request),
    /// A coordinator takes a request up, and makes the change.
    Make(Request),
    /// A coordinator answers, and the program has the answer.
    Answer(usize),
    /// A node answers that it has dropped what it cached.
    Invalidate(usize),
    /// A mount learns that it has the role.
    Learn(usize),
    /// It learns it late: it has given the role back since.
    LearnLate(usize),
    /// A mount that opens or closes the store goes on.
    Step(usize),
    /// It cannot open the store.
    Fail(usize),
    Attach(usize),
    /// Everybody has attached: the coordinator serves.
    Settle(usize),
    /// B's file without a name is reclaimed.
    Reclaim(usize),
    /// A mount is hit; what it is about to write lingers, or it is about to write nothing.
    Hit(usize, Option<Lingering>),
    /// What lingers lands.
    Land(usize),
    /// It does not.
    Lose(usize),
    Wake(usize),
    /// The target refuses a mount, and drains it.
    Refuse(usize),
    /// Lease and grace pass.
    Wait,
    /// A stops, to hand the role over.
    Resign,
    /// Another cluster opens the volume.
    Intrude,
    /// The LUN holds up A's beats, and a write perhaps.
    Stall(Option<Lingering>),
    /// A's next step to win the lease of its beats back.
    Round(u8),
}

impl Takeover {
    fn of_lockd(&self, world: &World, actions: &mut Vec<Action>) {
        let arriving = world.scene.network.iter().filter(|(_, left)| **left > 0);
        actions.extend(arriving.map(|(message, _)| Action::Apply(*message)));
        actions.extend(self.sendable(world).into_iter().map(Action::Send));
        for mount in MOUNTS {
            let known = world.lockd.fences.contains_key(&(VOLUME, self.victim(mount)));
            if known && self.scenario.fence == Fence::Target && !world.scene.refused[mount] {
                actions.push(Action::Refuse(mount));
            }
        }
        let lingers = world
            .scene
            .mounts
            .iter()
            .any(|mount| mount.lingering.is_some_and(|lingering| lingering.way != Way::Gap));
        if self.waits(world) && !lingers {
            actions.push(Action::Wait);
        }
    }

    fn of_program(&self, world: &World, actions: &mut Vec<Action>) {
        let scene = &world.scene;
        let (line, change) = (scene.mounts[C].line, scene.answered + 1);
        if let Some((to, role)) = self.begun(world)
            && role == line
            && change <= self.scenario.changes
        {
            let request = Request { to, role, change };
            if !scene.requests.contains_key(&request) {
                actions.push(Action::Ask(request));
            }
        }
        let arriving = scene.requests.iter().filter(|(_, left)| **left > 0).map(|(request, _)| *request);
        actions.extend(arriving.filter(|request| self.takes(scene, *request)).map(Action::Make));
    }

    fn of_mount(&self, world: &World, mount: usize, actions: &mut Vec<Action>) {
        let scene = &world.scene;
        let it = &scene.mounts[mount];
        if let Some(Lingering { way, .. }) = it.lingering {
            match way {
                Way::Own | Way::Carried => actions.extend([Action::Land(mount), Action::Lose(mount)]),
                Way::Gap => {}
            }
        }
        match it.life {
            Life::Runs => {}
            Life::Paused => actions.push(Action::Wake(mount)),
            Life::Stalls(done) if it.lingering.is_none() => actions.push(Action::Round(done)),
            Life::Stalls(_) | Life::Over => {}
        }
        if it.life != Life::Runs || it.lingering.is_some() {
            return;
        }
        let stage = it.office.as_ref().map(|office| office.stage);
        let judges = matches!(stage, Some(Stage::Watches | Stage::Judges));
        if self.next_write(scene, mount).is_some() || judges {
            actions.push(Action::Step(mount));
        }
        if stage == Some(Stage::Claims) && mount == B && scene.failures_left > 0 {
            actions.push(Action::Fail(mount));
        }
        let own: [(Action, bool); 4] = [
            (Action::Answer(mount), self.answers(world, mount)),
            (Action::Settle(mount), self.has_assembled(world, mount)),
            (Action::Reclaim(mount), self.scenario.orphan && self.reclaims(world, mount)),
            (Action::Resign, self.scenario.moves && mount == A && self.may_resign(world)),
        ];
        actions.extend(own.into_iter().filter(|(_, may)| *may).map(|(action, _)| action));
        if mount == D {
            return;
        }
        if let Some((coordinator, role)) = self.coordinator(world) {
            if coordinator == mount && it.office.is_none() && role > it.had {
                actions.push(Action::Learn(mount));
            }
            if self.begun(world).is_some() && it.line != role {
                actions.push(Action::Attach(mount));
            }
        }
        if it.gives_back > 0 && it.office.is_none() && !self.guards.has(Guard::Had) {
            actions.push(Action::LearnLate(mount));
        }
        let asks = |office: &Office| office.due > 0 && office.role == it.line;
        if it.caches && scene.mounts.iter().any(|other| other.serves() && other.office.iter().any(asks)) {
            actions.push(Action::Invalidate(mount));
        }
    }

    fn may_resign(&self, world: &World) -> bool {
        let it = &world.scene.mounts[A];
        it.serves() && it.acquisitions == 0 && it.office.as_ref().is_some_and(|office| office.due == 0)
    }

    fn step(&self, world: &mut World, mount: usize) {
        match self.next_write(&world.scene, mount) {
            Some(write) => self.land(world, mount, Lingering { write, way: Way::Own }, true),
            None => self.watch(&mut world.scene),
        }
    }

    fn make(&self, world: &mut World, request: Request) {
        if let Some(left) = world.scene.requests.get_mut(&request) {
            *left -= 1;
        }
        match self.record(&world.scene, request) {
            Some(write) => self.land(world, request.to, Lingering { write, way: Way::Own }, true),
            None => self.repeat(&mut world.scene, request),
        }
    }

    fn resign(&self, world: &mut World) {
        let it = &mut world.scene.mounts[A];
        if !self.guards.has(Guard::Closing) {
            it.hands_on = true;
        } else if let Some(office) = it.office.as_mut() {
            office.stage = Stage::Closes;
        }
    }

    fn begin(&self, world: &mut World, mount: usize, role: u64) {
        let it = &mut world.scene.mounts[mount];
        (it.office, it.had) = (Some(Office::new(role)), role);
    }
}

impl Model for Takeover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.of_lockd(world, actions);
        self.of_program(world, actions);
        for mount in [A, B, C, D] {
            self.of_mount(world, mount, actions);
        }
        self.hits(world, actions);
        if self.scenario.stranger && world.scene.mounts[D].had == 0 {
            actions.push(Action::Intrude);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        let scene = &mut world.scene;
        match action {
            Action::Send(message) => self.send(scene, message),
            Action::Apply(message) => {
                *scene.network.get_mut(&message)? -= 1;
                self.apply(&mut world, message);
            }
            // It comes twice, or once, or never.
            Action::Ask(request) => {
                scene.requests.insert(request, self.scenario.copies);
            }
            Action::Make(request) => self.make(&mut world, request),
            Action::Answer(mount) => {
                let office = scene.mounts[mount].office.as_mut()?;
                scene.answered = scene.answered.max(std::mem::take(&mut office.due));
            }
            Action::Invalidate(mount) => scene.mounts[mount].caches = false,
            Action::Learn(mount) => {
                let (_, role) = self.coordinator(&world)?;
                self.begin(&mut world, mount, role);
            }
            Action::LearnLate(mount) => {
                let role = scene.mounts[mount].had;
                self.begin(&mut world, mount, role);
            }
            Action::Step(mount) => self.step(&mut world, mount),
            Action::Fail(mount) => {
                let it = &mut scene.mounts[mount];
                (it.office, it.gives_back) = (None, it.had);
                scene.failures_left -= 1;
            }
            Action::Attach(node) => {
                let begun = self.begun(last)?;
                self.attach(scene, node, begun);
            }
            Action::Settle(mount) => scene.mounts[mount].office.as_mut()?.stage = Stage::Serves,
            Action::Reclaim(_) => scene.reclaimed = true,
            Action::Hit(mount, lingering) => self.hit(scene, mount, lingering),
            Action::Land(mount) => {
                let lingering = scene.mounts[mount].lingering.take()?;
                let goes_on = matches!(scene.mounts[mount].life, Life::Stalls(_));
                self.land(&mut world, mount, lingering, goes_on);
            }
            Action::Lose(mount) => {
                let it = &mut scene.mounts[mount];
                // Whoever lives has its write done sooner or later.
                if matches!(it.life, Life::Stalls(_)) {
                    return None;
                }
                it.lingering = None;
            }
            Action::Wake(mount) => self.wake(&mut world, mount),
            Action::Refuse(mount) => {
                scene.refused[mount] = true;
                let it = &mut scene.mounts[mount];
                // What it carries for others, and what others carry for it, is not drained by that.
                it.lingering = it.lingering.filter(|lingering| lingering.way != Way::Own);
            }
            Action::Wait => scene.waits += 1,
            Action::Resign => self.resign(&mut world),
            Action::Intrude => {
                self.begin(&mut world, D, 1);
            }
            Action::Stall(lingering) => {
                let it = &mut scene.mounts[A];
                (it.life, it.lingering) = (Life::Stalls(0), lingering);
                scene.faults_left -= 1;
            }
            Action::Round(done) => self.round(scene, A, done),
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = properties::always();
        all.extend(properties::sometimes(self.scenario));
        all
    }
}
