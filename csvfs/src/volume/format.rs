//! Making a volume.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::rules::Rules;
use redirector::lun::Lun;
use redirector::uri::LunUri;

use super::{Settings, VolumeError};
use crate::disk;
use crate::disk::label::Label;
use crate::store;
use crate::types::Timestamp;

/// How a volume is made.
#[derive(Clone, Debug)]
pub struct FormatSettings {
    /// Also over something that is known.
    pub force: bool,
    /// The volume's name.
    pub name: String,
    /// The window of claims (V1).
    pub window: Duration,
    /// How long a write may be under way when its sender is gone (V2).
    pub quiesce: Duration,
    /// The rules that are kept.
    pub rules: Rules,
}

impl Default for FormatSettings {
    fn default() -> Self {
        let defaults = disk::format::FormatOptions::default();
        Self {
            force: false,
            name: "csvfs".to_owned(),
            window: defaults.window,
            quiesce: defaults.quiesce,
            rules: Rules::all(),
        }
    }
}

/// A volume that has been made.
#[derive(Debug)]
pub struct Made(Label);

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Label { name, uuid, lun_size, chunk_size, .. } = &self.0;
        write!(f, "volume {name:?} {uuid}: {} MiB in chunks of {} MiB", lun_size >> 20, chunk_size >> 20)
    }
}

/// Makes a volume on `lun`.
pub fn format(lun: &Arc<dyn Lun>, settings: &FormatSettings) -> Result<Made, VolumeError> {
    let options = disk::format::FormatOptions {
        force: settings.force,
        name: settings.name.clone(),
        window: settings.window,
        quiesce: settings.quiesce,
        ..disk::format::FormatOptions::default()
    };
    let now = Timestamp(SystemClock.wall().0);
    let label = disk::format::format(lun, &options, |database, free| store::initialise(database, free, now))?;
    Ok(Made(label))
}

/// Makes a volume on the LUN at `url`.
pub fn format_url(url: &LunUri, settings: &FormatSettings) -> Result<Made, VolumeError> {
    let opening = Settings { rules: settings.rules, ..Settings::local("format") };
    let lun = redirector::open::open(url, &opening.lun_options())?;
    format(&lun, settings)
}
