//! What is written down of a lab, so that another program can find it, use it, and take it away.
//!
//! `BASE/LAB/state.json` is written before anything is made, and anew after each change. A lab belongs to the process
//! that made it, unless it is kept; whoever makes the next lab takes those away whose owner is gone.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::daemon::DaemonSpec;
use super::identity::{self, ProcessId};
use super::network::{Cut, Network};
use super::plan::Plan;
use super::removal;
use crate::wait::until;

/// The version of the file.
const VERSION: u32 = 1;

/// A daemon as it was last started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaemonState {
    /// The host it runs on: `n1`, ..., or `san`.
    pub host: String,
    /// Its command line.
    pub spec: DaemonSpec,
    /// Its process; none if it was stopped.
    pub process: Option<ProcessId>,
}

/// A cut that was not healed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CutState {
    /// The host that is cut off, or whose packets are lost.
    pub host: String,
    /// Only those that it sends to this one.
    pub to: Option<String>,
    /// Where.
    pub network: Network,
    /// How.
    pub how: Cut,
}

/// All that is written down of a lab.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// The lab's name.
    pub name: String,
    /// The process that it goes with; none if it is kept.
    pub owner: Option<ProcessId>,
    /// The run of the machine that it was made in.
    pub boot: String,
    /// What it is to be like.
    pub plan: Plan,
    /// Its daemons.
    pub daemons: Vec<DaemonState>,
    /// What is cut.
    pub cuts: Vec<CutState>,
}

impl State {
    /// Of a lab that is about to be made by this process.
    pub fn new(name: &str, plan: &Plan) -> Result<Self> {
        let owner = if plan.kept { None } else { Some(ProcessId::own()?) };
        Ok(Self {
            version: VERSION,
            name: name.to_owned(),
            owner,
            boot: identity::boot()?,
            plan: plan.clone(),
            daemons: Vec::new(),
            cuts: Vec::new(),
        })
    }

    /// The processes of its daemons.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessId> {
        self.daemons.iter().filter_map(|daemon| daemon.process).collect()
    }

    /// Whether nobody has any use for it: its owner is gone, or the machine was started anew.
    pub fn is_abandoned(&self) -> Result<bool> {
        Ok(self.boot != identity::boot()? || self.owner.is_some_and(|owner| !owner.is_alive()))
    }

    /// Reads what is written down in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("state.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let state: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        ensure!(
            state.version == VERSION,
            "{} is of version {}, this program knows {VERSION}",
            path.display(),
            state.version
        );
        Ok(state)
    }

    /// Writes it down in `folder`, at once or not at all.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let (path, fresh) = (folder.join("state.json"), folder.join("state.json.new"));
        let text = serde_json::to_vec_pretty(self)?;
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// The folder of all labs, held so that nobody else makes or sweeps one.
#[derive(Debug)]
pub struct Base {
    folder: PathBuf,
    _lock: File,
}

impl Base {
    /// Holds `folder`, which is made if needed.
    pub fn hold(folder: &Path) -> Result<Self> {
        let context = || format!("the folder of the labs, {}", folder.display());
        fs::DirBuilder::new().recursive(true).mode(0o711).create(folder).with_context(context)?;
        let owner = fs::metadata(folder).with_context(context)?.uid();
        // What is in it is run and removed as this user.
        ensure!(
            owner == fs::metadata("/proc/self")?.uid(),
            "{} belongs to user {owner}; choose another folder",
            context()
        );
        let lock = File::create(folder.join("lock")).with_context(context)?;
        until("the other labs are made or removed", Duration::from_secs(60), || lock.try_lock().ok())
            .with_context(context)?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    /// The folders of the labs in it.
    pub fn labs(&self) -> Result<Vec<PathBuf>> {
        labs(&self.folder)
    }

    /// Takes away every lab that nobody has any use for; gives their names. A folder that has no state of a lab, or one
    /// of another version, is left alone.
    ///
    /// # Errors
    /// If one cannot be taken away. The others are tried all the same.
    pub fn sweep(&self) -> Result<Vec<String>> {
        let (mut swept, mut failed) = (Vec::new(), Ok(()));
        for folder in self.labs()? {
            let name = name_of(&folder);
            let Ok(state) = State::read(&folder) else { continue };
            if state.name != name || !state.is_abandoned()? {
                continue;
            }
            match removal::remove(&name, &folder, &state.processes()) {
                Ok(()) => swept.push(name),
                Err(error) => {
                    failed = Err(error.context(format!("removing the lab {name}, whose owner is gone")));
                }
            }
        }
        failed.map(|()| swept)
    }

    /// Makes the folder of a new lab and writes its state down in it.
    pub fn found(&self, state: &State) -> Result<PathBuf> {
        let folder = self.folder.join(&state.name);
        if folder.exists() {
            bail!("there is a lab {} already, in {}; end it by `lab down`", state.name, folder.display());
        }
        // The folder has its state from the first moment on. One that was cut short here has nothing else.
        let fresh = self.folder.join(format!(".{}.new", state.name));
        match fs::remove_dir_all(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let context = || format!("making {}", folder.display());
        fs::create_dir(&fresh).with_context(context)?;
        state.write(&fresh)?;
        fs::rename(&fresh, &folder).with_context(context)?;
        Ok(folder)
    }
}

/// The folders of the labs in `base`.
pub fn labs(base: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(base).with_context(|| format!("reading {}", base.display()))?;
    let mut folders: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

/// The name of the lab in `folder`.
#[must_use]
pub fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
