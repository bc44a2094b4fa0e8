//! Processes that end with their owner.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait::until;

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command` with its standard error in the file `log`.
    pub fn start(name: &str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let errors = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error.
    #[must_use]
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Takes its standard output, once.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits until it has printed one line, and gives that line. If it ends first, its errors are the error.
    pub fn first_line(&mut self) -> Result<String> {
        let output = self.output().context("standard output was taken before")?;
        let mut reader = BufReader::new(output);
        let mut line = String::new();
        reader.read_line(&mut line).with_context(|| format!("reading what {} prints", self.name))?;
        if line.is_empty() {
            let status = self.child.wait()?;
            bail!("{} ended ({status}) before it was ready: {}", self.name, self.errors());
        }
        // Whatever it prints later is read and dropped, so that it never blocks on a full pipe.
        std::thread::spawn(move || {
            let mut rest = Vec::new();
            let _ = reader.read_to_end(&mut rest);
        });
        Ok(line.trim_end().to_owned())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).expect("process ids fit");
        // SAFETY: plain system call; the child has not been waited for, so that the id is still its own.
        unsafe { libc::kill(pid, signal) };
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        until(&format!("{name} ends"), limit, || self.child.try_wait().ok().flatten())
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let errors = self.errors();
            let tail: Vec<&str> = errors.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("--- {} (pid {}) said:\n{}", self.name, self.pid(), tail.join("\n"));
        }
    }
}
