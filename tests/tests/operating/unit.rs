//! A unit file, read.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A unit.
pub struct Unit {
    /// Its file name.
    pub name: String,
    settings: Vec<(String, String)>,
}

impl Unit {
    /// Reads one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let lines = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
        let settings = lines
            .map(|line| {
                let (key, value) = line.split_once('=').with_context(|| format!("no setting: {line}"))?;
                Ok((key.to_owned(), value.to_owned()))
            })
            .collect::<Result<_>>()?;
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
        Ok(Self { name, settings })
    }

    /// All values of a setting.
    pub fn all(&self, key: &str) -> Vec<&str> {
        let found = self.settings.iter().filter(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// The one value of a setting.
    pub fn one(&self, key: &str) -> Result<&str> {
        self.all(key).first().copied().with_context(|| format!("{} has no {key}", self.name))
    }

    /// The names of all settings.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.settings.iter().map(|(key, _)| key.as_str())
    }

    /// The program of a command line, and its words.
    pub fn command(&self) -> Result<(PathBuf, Vec<&str>)> {
        let mut words = self.one("ExecStart")?.split(' ');
        let program = words.next().context("an empty command")?;
        Ok((program.into(), words.collect()))
    }
}
