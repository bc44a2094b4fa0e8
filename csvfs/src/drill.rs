//! The drill of a volume's fence, on the running cluster: somebody writes, is fenced by the step that the lockds take, and
//! what it sends then does not land.
//!
//! For csv-target the drill is a client of its own at the target, with an incarnation that nobody else has, and writes to
//! a block that nobody else uses ([`layout::DRILL_AT`]). A second client, which only reads, sees what has landed.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use lockd::cluster::FenceChoice;
use lockd::cluster::tls::{Credentials, TlsError};
use lockd::fencing::{AgentCommand, AgentError, TargetControl, TargetControlError, Targets, UnitError};
use lockd::ids::ClientId;
use lockd::machine::FenceMethod;
use lockd::random::{Random, SystemRandom};
use redirector::blocking;
use redirector::buffer::Pool;
use redirector::lun::{Identity, Lun, Outcome};
use redirector::open::{OpenError, OpenOptions, open};
use redirector::uri::LunUri;
use serde_json::{Value, json};

use crate::cluster::{ClusterError, Place, guarantee};
use crate::disk::layout;
use crate::disk::survey::{Survey, SurveyError};
use crate::types::BLOCK;

mod reservation;

pub use reservation::release;

/// How long the target may take over a word at its control port.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a write that was let go is waited for.
const LATE: Duration = Duration::from_secs(1);
/// How long the fenced client tries to reach the LUN again.
const HOLD: Duration = Duration::from_secs(2);

/// Why the drill has not proved the fence.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The volume's fence is none that is there.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The LUN cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no volume on it.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// The target does not do what it is asked.
    #[error(transparent)]
    Target(#[from] TargetControlError),
    /// The drill's own block cannot be read or written before anything was fenced.
    #[error("the drill's block cannot be used (errno {0}), before anybody was fenced: look at the LUN")]
    Block(i32),
    /// The units do not do what they are asked.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// A fence agent does not answer.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The fence does not hold.
    #[error("THE FENCE DOES NOT HOLD: {0}. Do not rely on it: a node that is fenced can still write")]
    Broken(String),
    /// Nobody else is registered.
    #[error(
        "this host is the only one that has registered with the LUN's target, and the reservation would end with its key: mount \
         the volume on another node, and drill here, where it is not mounted"
    )]
    Alone,
    /// Somebody else drills.
    #[error("{0}: is another drill under way? Try again")]
    Disturbed(String),
}

/// Runs the drill of the fence of `place`'s volume; `say` is told of each step.
///
/// # Errors
/// If something is missing for it, or the fence does not hold.
pub fn run(place: &Place, say: &mut dyn FnMut(&str)) -> Result<(), DrillError> {
    match &place.in_file().fence {
        FenceChoice::Lease => {
            say(
                "fence = \"lease\": there is nothing to drill, as nothing is done to a node that went silent: it is waited for.",
            );
            say(&format!("What holds: {}.", guarantee(FenceMethod::Lease)));
            Ok(())
        }
        FenceChoice::Agent(command) => of_agent(place, command, say),
        FenceChoice::Auto if matches!(place.luns.first(), Some(LunUri::Iscsi(_))) => {
            reservation::run(place, say)
        }
        FenceChoice::ScsiPr => reservation::run(place, say),
        FenceChoice::Auto | FenceChoice::NbdTarget => of_target(place, say),
    }
}

/// Switches nobody off: the agent is asked how each host is.
fn of_agent(place: &Place, command: &str, say: &mut dyn FnMut(&str)) -> Result<(), DrillError> {
    let volume = place.in_file();
    say(&format!(
        "fence = \"agent:{command}\": no host is switched off; the agent is asked for the status of each."
    ));
    for node in &place.cluster.nodes {
        let mut keys = volume.agent.clone();
        keys.extend(node.agent.clone());
        let agent = AgentCommand::new(command, &node.name, keys, volume.agent_timeout);
        if !agent.offers_status() {
            say("The agent offers no status: what it says of switching off cannot be verified.");
            return Ok(());
        }
        say(&format!("  node {}: {}", node.name, if agent.is_on()? { "on" } else { "OFF" }));
    }
    Ok(())
}

/// A client of the drill at the target.
fn options() -> OpenOptions {
    let random = SystemRandom;
    let mut cookie = [0; 16];
    random.fill(&mut cookie);
    let mut options = OpenOptions::new(ClientId((random.number() >> 2) + 1), cookie);
    options.hold = HOLD;
    options.connections = Some(1);
    options
}

fn of_target(place: &Place, say: &mut dyn FnMut(&str)) -> Result<(), DrillError> {
    let url = place.luns.first().ok_or_else(|| ClusterError::Lun("it has no path".to_owned()))?;
    let watcher = open(url, &OpenOptions { read_only: true, ..options() })?;
    let survey = Survey::read(watcher.as_ref())?;
    place.prove_fence(watcher.as_ref())?;
    let label = Identity { offset: 0, bytes: survey.label.encode().to_vec() };
    let mut mine = options();
    mine.identity = survey.label_damage().is_none().then_some(label);
    let victim = open(url, &mine)?;
    let credentials = Credentials::load(&place.cluster, &place.node)?;
    let targets = Targets::new(&place.in_file().control, &credentials)?;
    say(&format!("1. incarnation {} is let in, and writes to block {}", mine.client, layout::DRILL_AT));
    let first = contents(mine.client, 1);
    write(&victim, &first).recv().unwrap_or(Outcome::Unknown).ok().map_err(DrillError::Block)?;
    expect(watcher.as_ref(), &first)
        .map_err(|why| DrillError::Disturbed(format!("what was written is not read back: {why}")))?;

    let faults = Faults::set(&targets, mine.client)?;
    let late = write(&victim, &contents(mine.client, 2));
    faults.wait_until_held()?;
    say("2. its next write was held at the target: accepted, and not executed");

    let began = Instant::now();
    targets.fence(&[mine.client])?;
    let places: Vec<_> = targets.iter().map(|target| target.address().to_string()).collect();
    say(&format!(
        "3. it is fenced as the lockds do it, at {}, in {:.0?}",
        places.join(", "),
        began.elapsed()
    ));
    drop(faults);
    match late.recv_timeout(HOLD + LATE) {
        Ok(Outcome::Done) => {
            return Err(DrillError::Broken("a write of its was acknowledged after that".to_owned()));
        }
        Ok(Outcome::Failed(_) | Outcome::Unknown) | Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => {}
    }
    match open(url, &mine) {
        Err(error) => say(&format!("4. when it comes again: {error}")),
        Ok(_) => return Err(DrillError::Broken("it was let in again".to_owned())),
    }
    let after = write(&victim, &contents(mine.client, 3)).recv().unwrap_or(Outcome::Unknown);
    if after == Outcome::Done {
        return Err(DrillError::Broken("it could write".to_owned()));
    }
    std::thread::sleep(LATE);
    expect(watcher.as_ref(), &first).map_err(DrillError::Broken)?;
    say(
        "5. by another connection: its first write is there, the one that was held has not landed, nor has a later one",
    );
    say(&format!("PROVED. {}", guarantee(FenceMethod::NbdTarget)));
    Ok(())
}

/// What a drill writes: no two write the same.
fn contents(client: ClientId, turn: u8) -> Vec<u8> {
    let mut line = format!("fence drill of incarnation {client}, write {turn}\n").into_bytes();
    line.resize(usize::try_from(BLOCK).unwrap_or(0), turn);
    line
}

fn write(lun: &Arc<dyn Lun>, bytes: &[u8]) -> Receiver<Outcome> {
    let mut buffer = Pool::default().take(bytes.len());
    buffer.copy_from_slice(bytes);
    let (sender, receiver) = sync_channel(1);
    let on_done = Box::new(move |outcome| {
        // The drill may have stopped waiting.
        let _ = sender.send(outcome);
    });
    lun.write(layout::DRILL_AT * BLOCK, buffer.share(), true, on_done);
    receiver
}

fn expect(lun: &dyn Lun, bytes: &[u8]) -> Result<(), String> {
    let buffer = Pool::default().take(bytes.len());
    let found = blocking::read(lun, layout::DRILL_AT * BLOCK, buffer);
    let found = found.map_err(|errno| format!("the block cannot be read (errno {errno})"))?;
    if found[..] == *bytes {
        return Ok(());
    }
    let line: String =
        String::from_utf8_lossy(&found).chars().take_while(|c| !c.is_control()).take(80).collect();
    Err(format!("the block holds {line:?}"))
}

/// The switch by which the targets hold the drill's writes. It is off when this goes.
struct Faults<'a>(Vec<(&'a TargetControl, u64)>);

impl<'a> Faults<'a> {
    fn set(targets: &'a Targets, client: ClientId) -> Result<Self, DrillError> {
        let mut set = Self(Vec::new());
        let request = json!({
            "op": "fault", "action": "hang", "kinds": ["write"], "client": client.0,
            "offset": layout::DRILL_AT * BLOCK, "length": BLOCK,
        });
        for target in targets.iter() {
            let answer = target.ask(&request, PATIENCE)?;
            set.0.push((target, answer["fault"].as_u64().unwrap_or_default()));
        }
        Ok(set)
    }

    /// Waits until one of the targets holds a write.
    fn wait_until_held(&self) -> Result<(), DrillError> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            for (target, fault) in &self.0 {
                let answer = target.ask(&json!({"op": "faults"}), PATIENCE)?;
                let all = answer["faults"].as_array().map_or(&[][..], Vec::as_slice);
                let mine = |status: &&Value| status["fault"] == *fault;
                if all.iter().find(mine).is_some_and(|status| status["held"] == 1) {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(DrillError::Disturbed("the drill's write did not come to the target".to_owned()))
    }
}

impl Drop for Faults<'_> {
    fn drop(&mut self) {
        for (target, fault) in &self.0 {
            if let Err(error) = target.ask(&json!({"op": "clear", "fault": fault}), PATIENCE) {
                // It strikes one client only, which is gone.
                tracing::warn!(%error, fault, "the drill's fault is still set at the target");
            }
        }
    }
}
