//! What a check says.

use std::fmt;
use std::time::Duration;

/// What a check found and what was repaired, in words.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The volume's uuid.
    pub volume: String,
    /// What is wrong, and was not repaired.
    pub findings: Vec<String>,
    /// What was wrong and is repaired.
    pub repairs: Vec<String>,
    /// What files have lost for good with damaged pages of the metadata.
    pub lost: Vec<String>,
    /// What is worth knowing, and not wrong: what a crash leaves, and the next mount clears away.
    pub notes: Vec<String>,
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
            "lost": self.lost,
            "notes": self.notes,
            "took_s": self.took.as_secs_f64(),
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, findings, repairs, took, lost, .. } = self;
        let seconds = took.as_secs_f64();
        if !lost.is_empty() {
            writeln!(f, "{} losses: restore these from a backup", lost.len())?;
        }
        match (findings.len(), repairs.len()) {
            (0, 0) => write!(f, "volume {volume} is clean ({seconds:.1} s)"),
            (0, mended) => write!(f, "volume {volume} is clean now: {mended} repairs ({seconds:.1} s)"),
            (wrong, 0) => {
                write!(f, "volume {volume}: {wrong} findings ({seconds:.1} s); --repair mends what can be")
            }
            (wrong, mended) => {
                write!(f, "volume {volume}: {mended} repairs, and {wrong} findings remain ({seconds:.1} s)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_what_came_of_it() {
        let mut report = Report { volume: "v".to_owned(), ..Report::default() };
        assert_eq!(report.to_string(), "volume v is clean (0.0 s)");
        report.notes.push("n".to_owned());
        assert!(report.is_clean());
        report.repairs.push("r".to_owned());
        assert_eq!(report.to_string(), "volume v is clean now: 1 repairs (0.0 s)");
        report.findings.push("f".to_owned());
        assert_eq!(report.to_string(), "volume v: 1 repairs, and 1 findings remain (0.0 s)");
        report.repairs.clear();
        assert_eq!(report.to_string(), "volume v: 1 findings (0.0 s); --repair mends what can be");
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["clean"], &json["findings"][0]), (&false.into(), &"f".into()));
    }
}
