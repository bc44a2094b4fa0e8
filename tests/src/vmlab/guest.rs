//! The agent in a machine: it runs the scripts that come by the line from outside, each in a thread of its own, and sends
//! back what they have printed and their exit codes. A line of JSON is a question or an answer.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The name of the line among the machine's virtio ports.
pub const PORT: &str = "agent";

/// A script to be run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) id: u64,
    pub(super) script: String,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) id: u64,
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) err: String,
}

fn port() -> Result<PathBuf> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    anyhow::bail!("this machine has no virtio port called {PORT}")
}

/// As shells tell it: a signal is 128 more.
fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

fn run(question: &Question) -> Answer {
    let mut command = Command::new("/bin/sh");
    let output = command.args(["-c", &question.script]).stdin(Stdio::null()).output();
    let id = question.id;
    match output {
        Ok(output) => Answer {
            id,
            code: code(output.status),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        },
        Err(error) => Answer { id, code: 127, out: String::new(), err: format!("/bin/sh: {error}") },
    }
}

/// Serves for ever.
///
/// # Errors
/// If the machine has no line to the outside.
pub fn serve() -> Result<()> {
    let path = port()?;
    let line =
        File::options().read(true).write(true).open(&path).with_context(|| path.display().to_string())?;
    let answers = Arc::new(Mutex::new(line.try_clone()?));
    let mut questions = BufReader::new(line);
    loop {
        let mut text = String::new();
        if questions.read_line(&mut text)? == 0 {
            // Nobody is at the other end yet.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let question: Question =
            serde_json::from_str(&text).with_context(|| format!("a question: {text}"))?;
        let answers = Arc::clone(&answers);
        std::thread::spawn(move || {
            let answer = run(&question);
            let text = serde_json::to_string(&answer).unwrap_or_default() + "\n";
            let mut line = answers.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever asked may be gone.
            let _ = line.write_all(text.as_bytes());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_prints_and_how_it_ends_is_told() {
        let ask = |script: &str| run(&Question { id: 7, script: script.to_owned() });
        let said = ask("echo a; echo b >&2; exit 3");
        assert_eq!(said, Answer { id: 7, code: 3, out: "a\n".to_owned(), err: "b\n".to_owned() });
        assert_eq!(ask("kill -9 $$").code, 137);
    }
}
