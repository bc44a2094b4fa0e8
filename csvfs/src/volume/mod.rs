//! A volume on a LUN, with all of its layers: the one place that puts them together.
//!
//! LUN (redirector) -> label, claim, metadata area (`disk`) -> authority (lockd) -> coordinator -> node -> a front end.

mod condition;
mod entry;
mod error;
mod format;
mod inquiry;
mod join;
mod office;
mod reporter;
mod settings;
mod succession;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use lockd::authority::Authority;
use lockd::ids::{ClientId, Epoch, ResourceId, SessionId};
use lockd::lease::Lease;
use lockd::network::InProcess;
use lockd::standalone::Standalone;
use redirector::lun::{Identity, Lun};
use redirector::uri::LunUri;

pub use error::VolumeError;
pub use format::{FormatSettings, Made, format, format_url};
pub use reporter::Reporter;
pub use settings::Settings;
pub(crate) use watch::{refuse_beside_writer, refuse_moved};

use self::office::Office;
use self::succession::{Left, Succession};

use crate::cluster::ClusterLocks;
use crate::coordinator::{self, Beside, Openings};
use crate::disk::area::{Area, AreaError};
use crate::disk::journal::Journal;
use crate::disk::label::Label;
use crate::disk::open::{self, Hold, OpenError, OpenVolume, Opened};
use crate::disk::survey::Survey;
use crate::disk::view::{View, ViewOptions, open_beside, open_read_only};
use crate::disk::{MetadataSpace, SpaceError, layout};
use crate::fsck::{Rescued, rescue};
use crate::lock_service::LockService;
use crate::node::{self, Node};
use crate::peers::Alone;
use crate::proto::Bequest;
use crate::refusal::Refusal;
use crate::service::FileService;
use crate::status::Opening;
use crate::store::redo::replayer;
use crate::types::Run;

/// An open volume and everything that serves it.
#[derive(Debug)]
pub struct Volume {
    label: Label,
    lun: Arc<dyn Lun>,
    control: Control,
    client: ClientId,
    /// The coordinator's part of a mount without a cluster.
    office: Option<Office>,
    node: Arc<Node>,
    opening: Opening,
    settings: Settings,
}

/// Who decides who may do what.
#[derive(Debug)]
enum Control {
    /// This mount alone.
    Alone(Arc<Standalone>),
    /// Its cluster.
    Cluster(Succession),
}

impl Control {
    fn authority(&self) -> Arc<dyn Authority> {
        match self {
            Self::Alone(standalone) => Arc::clone(standalone) as _,
            Self::Cluster(succession) => Arc::clone(&succession.member().plane) as _,
        }
    }
}

/// What opening gave, for reading or for writing.
struct Ground {
    label: Label,
    openings: Openings,
    session: SessionId,
    lease: Arc<Lease>,
    database: redb::Database,
    space: Arc<dyn MetadataSpace>,
    hold: Option<Hold>,
    settle: Duration,
    opening: Opening,
    /// Where the label is that is whole, in bytes of the LUN.
    label_at: u64,
    /// Whether the whole store was checked when it was opened.
    checked: bool,
    journal: Option<Journal>,
    /// Opens the store once more, for reading.
    beside: Beside,
}

/// Where the label is that is whole.
fn label_at(survey: &Survey) -> u64 {
    if survey.label_damage().is_some() { layout::LABEL_COPY_AT * crate::types::BLOCK } else { 0 }
}

/// The metadata area of a volume that is only read: it never needs room.
#[derive(Debug)]
struct NoSpace;

impl MetadataSpace for NoSpace {
    fn chunk_blocks(&self) -> u64 {
        1
    }

    fn wanted(&self) -> u64 {
        0
    }

    fn is_scarce(&self) -> bool {
        true
    }

    fn offer(&self, _chunks: &[Run]) -> Result<(), SpaceError> {
        Err(SpaceError(libc::EROFS))
    }
}

impl Volume {
    /// Opens the LUN to which the paths `urls` lead, the preferred one first, and the volume on it.
    pub fn open_url(urls: &[LunUri], settings: Settings) -> Result<Self, VolumeError> {
        let lun = redirector::open::open_all(urls, &settings.lun_options())?;
        Self::open(lun, settings)
    }

    /// Opens the volume on `lun`.
    pub fn open(lun: Arc<dyn Lun>, settings: Settings) -> Result<Self, VolumeError> {
        let ground =
            if settings.read_only { Self::look(&lun, &settings)? } else { Self::take(&lun, &settings)? };
        let (label, label_at) = (ground.label.clone(), ground.label_at);
        // From now on only this volume is accepted when the LUN is reached anew (P3).
        lun.expect(Identity { offset: label_at, bytes: label.encode().to_vec() });
        lun.assume_quiesce(settings.quiesce_of(&label));
        // Epochs of files start far above those of earlier sessions: each session has a range of its own.
        let first_epoch = Epoch(ground.openings.this.0 << 32);
        let lease = Arc::clone(&ground.lease);
        let alone = Arc::new(Standalone::new(ground.session, lease, settings.client, first_epoch));
        let authority: Arc<dyn Authority> = Arc::clone(&alone) as _;
        let client = authority.add_client()?;
        let role = authority.acquire(&ResourceId::Coordinator(label.uuid), client)?.epoch;
        let office = Office::open(ground, &lun, &authority, Arc::new(Alone), role, &settings)?;
        let node = Node::start(node::Parts {
            carrier: Some(Arc::new(InProcess(Arc::clone(&office.coordinator)))),
            lun: Arc::clone(&lun),
            authority,
            beat: None,
            peers: Arc::new(Alone),
            clock: Arc::clone(&settings.clock),
            rules: settings.rules,
            pool: settings.pool.clone(),
            volume: label.uuid,
            client,
            coordinator: role,
            options: settings.node_options(),
        })
        .map_err(VolumeError::Thread)?;
        let node = Arc::new(node);
        let (control, opening) = (Control::Alone(alone), office.opening.clone());
        Ok(Self { label, lun, control, client, office: Some(office), node, opening, settings })
    }

    /// Opens for writing: claims the volume (V1) and opens its store (V2).
    fn take(lun: &Arc<dyn Lun>, settings: &Settings) -> Result<Ground, VolumeError> {
        let opened = open::open(Arc::clone(lun), settings.open_options())?;
        let opening = settings.describe_opening(&opened);
        // A store that was copied had a writer whose last writes may still land; one opened in place has not.
        let settle = match &opened.opened {
            Opened::InPlace(_) => Duration::ZERO,
            Opened::Copied { .. } | Opened::Rebuilt => settings.quiesce_of(&opened.label),
        };
        let OpenVolume {
            label,
            epoch,
            last_epoch,
            session,
            database,
            area,
            journal,
            lease,
            hold,
            checked,
            ..
        } = opened;
        let (again, cache_bytes, rules) = (Arc::downgrade(&area), settings.cache_bytes, settings.rules);
        let beside = Beside::new(move || {
            let area = again.upgrade().ok_or(AreaError::Closed)?;
            Ok(open_beside(&area, cache_bytes, &replayer(rules))?)
        });
        let space: Arc<Area> = area;
        Ok(Ground {
            label,
            openings: Openings { last: last_epoch, this: epoch },
            session,
            lease,
            database,
            space,
            hold: Some(hold),
            settle,
            opening,
            label_at: 0,
            checked,
            journal,
            beside,
        })
    }

    /// Opens for reading: claims nothing, and writes nothing.
    fn look(lun: &Arc<dyn Lun>, settings: &Settings) -> Result<Ground, VolumeError> {
        let start = settings.clock.boot();
        let survey =
            refuse_beside_writer(lun.as_ref(), Survey::read(lun.as_ref())?, settings.clock.as_ref())?;
        let waited = settings.clock.boot();
        let options = ViewOptions { pool: settings.pool.clone(), ..ViewOptions::default() };
        let replay = replayer(settings.rules);
        let mut warnings: Vec<String> = survey.findings.iter().map(ToString::to_string).collect();
        let view = match open_read_only(lun, survey.clone(), &options, &replay) {
            Err(error @ (OpenError::Store(_) | OpenError::Journal(_))) => {
                // So damaged that it does not even open: what can be read of it is read into memory.
                let Rescued { database, journal, .. } = rescue(lun, &survey).ok_or(error)??;
                warnings.extend(journal);
                warnings.push("the metadata store is damaged: what can be read of it is shown".to_owned());
                View { database, survey, writer: None }
            }
            other => other?,
        };
        refuse_moved(lun.as_ref(), &view.survey)?;
        let epoch = view.survey.superblock.epoch;
        warnings.push("read-only".to_owned());
        let (again, survey, label_at) = (Arc::downgrade(lun), view.survey.clone(), label_at(&view.survey));
        let beside = Beside::new(move || {
            let lun = again.upgrade().ok_or(AreaError::Closed)?;
            Ok(open_read_only(&lun, survey.clone(), &options, &replay)?.database)
        });
        Ok(Ground {
            label: view.survey.label,
            openings: Openings { last: epoch, this: epoch },
            session: SessionId(epoch.0),
            lease: Arc::new(Lease::unlimited()),
            database: view.database,
            space: Arc::new(NoSpace),
            hold: None,
            settle: Duration::ZERO,
            label_at,
            checked: true,
            journal: None,
            beside,
            opening: Opening {
                how: "read-only".to_owned(),
                wait_s: waited.since(start).as_secs_f64(),
                open_s: settings.clock.boot().since(waited).as_secs_f64(),
                warnings,
                ..Opening::default()
            },
        })
    }

    /// What a front end asks.
    #[must_use]
    pub fn service(&self) -> Arc<dyn FileService> {
        Arc::clone(&self.node) as Arc<dyn FileService>
    }

    /// The locks of this node's programs.
    #[must_use]
    pub fn locks(&self) -> Arc<dyn LockService> {
        match &self.control {
            Control::Alone(standalone) => Arc::clone(standalone.locks()) as _,
            Control::Cluster(succession) => {
                Arc::new(ClusterLocks::new(succession.member().plane.client(), self.label.uuid))
            }
        }
    }

    /// This process, as the control plane knows it.
    #[must_use]
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// Memory for requests.
    #[must_use]
    pub fn pool(&self) -> &redirector::buffer::Pool {
        &self.settings.pool
    }

    /// Tells the state of the volume, for as long as it is open.
    #[must_use]
    pub fn reporter(&self, lun: String, mountpoint: String) -> Arc<Reporter> {
        let reporter = Arc::new(Reporter::new(self, lun, mountpoint));
        if let Control::Cluster(succession) = &self.control {
            succession.member().tell_status(&reporter);
        }
        reporter
    }

    /// Closes the volume: everything is committed, the reserve returns, the claim is released. The next opening needs no
    /// wait and no copy. The coordinator's mount hands its role to another one before that, if there is one.
    pub fn close(self) -> Result<(), VolumeError> {
        if let Control::Cluster(succession) = &self.control {
            succession.member().let_go();
            succession.leave();
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.node.shut_down(Box::new(move |result| {
            let _ = sender.send(result);
        }));
        let drained = receiver.recv().unwrap_or(Ok(()));
        let Self { control, client, office, node, lun, .. } = self;
        let (alone, member, Left { office, claim }) = match control {
            Control::Alone(standalone) => (Some(standalone), None, Left { office, claim: None }),
            Control::Cluster(succession) => {
                let member = Arc::clone(succession.member());
                (None, Some(member), succession.end())
            }
        };
        let closed = match office {
            None => {
                let flushed = redirector::blocking::flush(lun.as_ref());
                drop(node);
                drained.map_err(VolumeError::Commit).and(flushed.map_err(VolumeError::Flush))
            }
            Some(office) => close_office(office, node, &lun, client, drained),
        };
        // A claim is closed when all that was sent is done; otherwise it is left as a crash would leave it.
        if let Some(claim) = claim
            && closed.is_ok()
            && let Err(errno) = claim.close()
        {
            tracing::warn!(errno, "the claim could not be closed; the next mount here closes it");
        }
        // The role is given back when the volume is closed: whoever gets it opens it without a wait.
        if let Some(standalone) = alone {
            standalone.end_client(client);
        }
        if let Some(member) = member {
            member.leave();
        }
        closed
    }

    /// How far the check of all metadata is; nothing on a mount that does not coordinate the volume.
    #[must_use]
    pub fn scrub(&self) -> Option<coordinator::Scrub> {
        match &self.control {
            Control::Alone(_) => self.office.as_ref().map(|office| office.coordinator.scrub()),
            Control::Cluster(succession) => succession.board().coordinator.upgrade().map(|it| it.scrub()),
        }
    }

    /// Leaves the volume as a crash of this process would.
    pub fn abandon(self) {
        if let Control::Alone(standalone) = &self.control {
            standalone.end_session();
        }
        if let Some(office) = &self.office {
            office.coordinator.stop();
        }
    }
}

/// Closes the store of a mount that coordinates the volume and of which `drained` is what became of its node's data.
fn close_office(
    office: Office,
    node: Arc<Node>,
    lun: &Arc<dyn Lun>,
    client: ClientId,
    drained: Result<(), Refusal>,
) -> Result<(), VolumeError> {
    if office.is_read_only() {
        return Ok(());
    }
    // What could not be committed leaves a volume that was not closed: the next opening cleans up after it.
    drained.map_err(VolumeError::Commit)?;
    office.coordinator.end_client(client).map_err(VolumeError::Commit)?;
    office.stop(Vec::new());
    node.hang_up(Bequest::default());
    drop(node);
    office.close(lun)
}
