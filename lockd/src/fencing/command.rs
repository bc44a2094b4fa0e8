//! A fence agent: a program that switches hosts off, as cluster distributions ship them (`fence_ipmilan`, `fence_redfish`).
//!
//! It reads `key=value` lines on standard input. Exit code 0 means that it is done; of `action=status`, 0 means that the
//! host is on and 2 that it is off. An agent that does not end in time is killed with all of its process group. What it
//! says is not believed: where its metadata offers `status`, the host counts as off only when that says so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use crate::ids::NodeName;

/// How much of an agent's output is kept, in bytes.
const OUTPUT_MAX: usize = 64 << 10;
/// How much of it stands in an error, in characters.
const OUTPUT_SHOWN: usize = 400;
/// How often a running agent is looked at.
const GLANCE: Duration = Duration::from_millis(10);
/// How long is waited for the last words of an agent that has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// What `action=status` ends with when the host is off.
const OFF: i32 = 2;

/// Why a host is not known to be off.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be run.
    #[error("the fence agent {agent} cannot be run: {why}")]
    NotRun {
        /// The command.
        agent: String,
        /// The reason.
        why: String,
    },
    /// It has failed.
    #[error("the fence agent {agent} has failed at action={action} ({status}); it said: {output}")]
    Failed {
        /// The command.
        agent: String,
        /// What it was to do.
        action: &'static str,
        /// How it ended.
        status: String,
        /// Its words.
        output: String,
    },
    /// It did not end.
    #[error(
        "the fence agent {agent} did not end within {after:?} at action={action} and was killed (agent_timeout_s of the \
         volume); it said: {output}"
    )]
    Hung {
        /// The command.
        agent: String,
        /// What it was to do.
        action: &'static str,
        /// How long it was waited for.
        after: Duration,
        /// Its words.
        output: String,
    },
    /// It said that the host is off, and then that it is on.
    #[error(
        "the fence agent {agent} said that node {node} is off, but its status says on: nothing is given away"
    )]
    Lied {
        /// The command.
        agent: String,
        /// The node.
        node: NodeName,
    },
}

/// A fence agent's command, and what it is told of one host.
#[derive(Clone, Debug)]
pub struct AgentCommand {
    command: String,
    node: NodeName,
    keys: BTreeMap<String, String>,
    timeout: Duration,
}

struct Ended {
    status: ExitStatus,
    output: String,
}

impl AgentCommand {
    /// The agent `command` (a program and its arguments, separated by spaces), for the host `node`. Each of its actions
    /// may take `timeout`.
    #[must_use]
    pub fn new(command: &str, node: &NodeName, keys: BTreeMap<String, String>, timeout: Duration) -> Self {
        Self { command: command.to_owned(), node: node.clone(), keys, timeout }
    }

    /// Switches the host off and makes sure that it is, as far as the agent can tell. Says what was seen.
    ///
    /// # Errors
    /// If the agent fails, hangs, or is found lying.
    pub fn off(&self) -> Result<String, AgentError> {
        let Ended { output, .. } = self.done("off")?;
        if !self.offers_status() {
            return Ok(format!(
                "the agent says that it is off, and has no status to verify it by: {}",
                end_of(&output)
            ));
        }
        if self.is_on()? {
            return Err(AgentError::Lied { agent: self.command.clone(), node: self.node.clone() });
        }
        Ok("the agent has switched it off, and its status says so".to_owned())
    }

    /// Whether the host is on.
    ///
    /// # Errors
    /// If the agent cannot tell.
    pub fn is_on(&self) -> Result<bool, AgentError> {
        let ended = self.run("status")?;
        match ended.status.code() {
            Some(0) => Ok(true),
            Some(OFF) => Ok(false),
            _ => Err(self.failed("status", ended)),
        }
    }

    /// Whether the agent says what it can do, and `status` is among it.
    #[must_use]
    pub fn offers_status(&self) -> bool {
        let metadata = self.done("metadata");
        metadata.is_ok_and(|ended| ended.output.contains("name=\"status\""))
    }

    fn done(&self, action: &'static str) -> Result<Ended, AgentError> {
        let ended = self.run(action)?;
        if ended.status.success() { Ok(ended) } else { Err(self.failed(action, ended)) }
    }

    fn failed(&self, action: &'static str, ended: Ended) -> AgentError {
        let Ended { status, output } = ended;
        let (agent, status, output) = (self.command.clone(), status.to_string(), end_of(&output));
        AgentError::Failed { agent, action, status, output }
    }

    fn input(&self, action: &str) -> String {
        let mut input = format!("action={action}\nnodename={0}\nplug={0}\n", self.node);
        for (key, value) in &self.keys {
            // Writing to a string cannot fail.
            let _ = writeln!(input, "{key}={value}");
        }
        input
    }

    fn run(&self, action: &'static str) -> Result<Ended, AgentError> {
        let not_run =
            |error: io::Error| AgentError::NotRun { agent: self.command.clone(), why: error.to_string() };
        let (mut child, words) = self.start(action).map_err(not_run)?;
        let deadline = Instant::now() + self.timeout;
        let status = loop {
            match child.try_wait().map_err(not_run)? {
                Some(status) => break Some(status),
                None if Instant::now() >= deadline => break None,
                None => std::thread::sleep(GLANCE),
            }
        };
        let Some(status) = status else {
            kill_group(&child);
            // It was killed, so that this does not wait.
            let _ = child.wait();
            let output = end_of(&heard(&words));
            let (agent, after) = (self.command.clone(), self.timeout);
            return Err(AgentError::Hung { agent, action, after, output });
        };
        let output = heard(&words);
        tracing::info!(agent = self.command, node = %self.node, action, %status, output, "a fence agent has ended");
        Ok(Ended { status, output })
    }

    fn start(&self, action: &str) -> io::Result<(Child, Receiver<Vec<u8>>)> {
        let mut words = self.command.split_ascii_whitespace();
        let program = words.next().ok_or(io::ErrorKind::NotFound)?;
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(program);
        command.args(words).process_group(0).stdin(Stdio::piped());
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        // The ends of the pipe that the command keeps must go, or the reader never comes to its end.
        drop(command);
        if let Some(mut stdin) = child.stdin.take() {
            // An agent that reads nothing is none of our troubles: a few lines fit into the pipe.
            let _ = stdin.write_all(self.input(action).as_bytes());
        }
        let (sender, receiver) = sync_channel(1);
        // Whoever inherits the pipe may keep it open for ever; nobody waits for this thread.
        std::thread::Builder::new().name("fence-agent".to_owned()).spawn(move || {
            let _ = sender.send(listen(reader));
        })?;
        Ok((child, receiver))
    }
}

/// What comes out of the pipe, up to its end; what is too much is read and forgotten.
fn listen(mut reader: PipeReader) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        let room = OUTPUT_MAX - kept.len();
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    kept
}

fn heard(words: &Receiver<Vec<u8>>) -> String {
    let bytes = words.recv_timeout(LAST_WORDS).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    if text.is_empty() {
        return "nothing".to_owned();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The end of a text, for a message.
fn end_of(text: &str) -> String {
    let count = text.chars().count();
    text.chars().skip(count.saturating_sub(OUTPUT_SHOWN)).collect()
}

fn kill_group(child: &Child) {
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // SAFETY: the call takes two numbers; the child has not been waited for, so that its group is still its own.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    /// An agent that does by `script` what stands behind `case $action in`.
    fn agent(folder: &TempDir, cases: &str) -> AgentCommand {
        let path = folder.path().join("agent");
        let script = format!(
            "#!/bin/sh\nwhile read line; do case $line in action=*) action=${{line#action=}};; esac; echo $line >>{}; \
             done\ncase $action in\n{cases}\nesac\n",
            folder.path().join("input").display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let keys = BTreeMap::from([("ip".to_owned(), "10.1.0.2".to_owned())]);
        let name = "n2".parse().unwrap();
        AgentCommand::new(path.to_str().unwrap(), &name, keys, Duration::from_secs(5))
    }

    const METADATA: &str = "metadata) echo '<action name=\"status\"/>';;";

    #[test]
    fn an_agent_is_told_what_to_do_and_verified() {
        let folder = tempfile::tempdir().unwrap();
        let good = agent(&folder, &format!("off) exit 0;;\nstatus) exit 2;;\n{METADATA}"));
        assert!(good.off().unwrap().contains("its status says so"));
        let input = std::fs::read_to_string(folder.path().join("input")).unwrap();
        assert!(
            input.starts_with("action=off\nnodename=n2\nplug=n2\nip=10.1.0.2\naction=metadata\n"),
            "{input}"
        );
        let silent = agent(&folder, "off) exit 0;;\n*) exit 1;;");
        assert!(silent.off().unwrap().contains("no status"));
    }

    #[test]
    fn an_agent_that_fails_hangs_or_lies_has_fenced_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let fails = agent(&folder, "off) echo no route to the BMC >&2; exit 1;;").off();
        let text = fails.unwrap_err().to_string();
        assert!(text.contains("exit status: 1") && text.contains("no route to the BMC"), "{text}");
        let lies = agent(&folder, &format!("off) exit 0;;\nstatus) exit 0;;\n{METADATA}")).off();
        assert!(matches!(lies, Err(AgentError::Lied { .. })), "{lies:?}");
        let mut hangs = agent(&folder, "off) echo dialling; sleep 600;;");
        hangs.timeout = Duration::from_millis(300);
        let began = Instant::now();
        let text = hangs.off().unwrap_err().to_string();
        assert!(text.contains("300ms") && text.contains("dialling"), "{text}");
        assert!(began.elapsed() < Duration::from_secs(3), "its children are killed as well");
        let unsure = agent(&folder, &format!("off) exit 0;;\nstatus) exit 1;;\n{METADATA}")).off();
        assert!(matches!(unsure, Err(AgentError::Failed { action: "status", .. })), "{unsure:?}");
        let missing = AgentCommand::new("/no/such/agent", &hangs.node, BTreeMap::new(), hangs.timeout).off();
        assert!(matches!(missing, Err(AgentError::NotRun { .. })));
    }
}
