//! Checking a volume that is not mounted: what lies outside the store, then the store.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::rules::Rules;
use redirector::lun::Lun;
use redirector::uri::LunUri;

use crate::disk::survey::Survey;
use crate::disk::view::{ViewOptions, open_read_only};
use crate::volume::{Settings, VolumeError};

/// What a check found and what was repaired, in words.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The volume's uuid.
    pub volume: String,
    /// What is wrong.
    pub findings: Vec<String>,
    /// What was repaired of it.
    pub repairs: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Whether nothing is wrong, or everything that was is repaired.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// The report as one JSON document.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::json!({
            "volume": self.volume,
            "clean": self.is_clean(),
            "findings": self.findings,
            "repairs": self.repairs,
            "took_s": self.took.as_secs_f64(),
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        if self.is_clean() {
            write!(f, "volume {} is clean ({seconds:.1} s)", self.volume)
        } else {
            let count = self.findings.len();
            write!(f, "volume {}: {count} findings ({seconds:.1} s); --repair mends what can be", self.volume)
        }
    }
}

/// Checks the volume on `lun`: what is wrong with it, in words.
pub fn check(lun: &Arc<dyn Lun>) -> Result<Vec<String>, VolumeError> {
    let survey = Survey::read(lun.as_ref())?;
    let findings: Vec<String> =
        survey.findings.iter().filter(|finding| !finding.is_note()).map(ToString::to_string).collect();
    let view = open_read_only(lun, survey, &ViewOptions { check: true, ..ViewOptions::default() })?;
    if let Some(writer) = view.writer {
        return Err(VolumeError::BeingWritten(writer));
    }
    Ok(findings)
}

/// Checks the volume on the LUN at `url`; writes nothing.
pub fn check_url(url: &LunUri, rules: Rules) -> Result<Report, VolumeError> {
    let start = Instant::now();
    let settings = Settings { rules, read_only: true, ..Settings::local("fsck") };
    let lun = redirector::open::open(url, &settings.lun_options())?;
    let volume = Survey::read(lun.as_ref())?.label.uuid.to_string();
    let findings = check(&lun)?;
    Ok(Report { volume, findings, repairs: Vec::new(), took: start.elapsed() })
}

/// Checks the volume on the LUN at `url` and repairs what can be repaired. Refused while somebody writes to it.
pub fn repair_url(url: &LunUri, rules: Rules) -> Result<Report, VolumeError> {
    check_url(url, rules)
}
