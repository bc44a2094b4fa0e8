//! The line to the agent in a machine, from outside.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use super::guest::{Answer, Question};
use crate::wait::until;

/// How long QEMU may take to listen.
const LISTEN: Duration = Duration::from_secs(20);

/// What a script has said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// Its exit code; 128 and the number of the signal that ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// Who waits for which answer. None any more: the line is broken.
    open: Option<BTreeMap<u64, Sender<Answer>>>,
}

/// The line.
#[derive(Debug)]
pub(super) struct Channel {
    line: Mutex<UnixStream>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Channel {
    /// The line that QEMU serves on the socket at `path`.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let line = until("QEMU listens", LISTEN, || UnixStream::connect(path).ok())?;
        let waiting = Arc::new(Mutex::new(Waiting { next: 0, open: Some(BTreeMap::new()) }));
        let (reader, of_reader) = (line.try_clone()?, Arc::clone(&waiting));
        // It ends with the machine.
        std::thread::spawn(move || {
            for text in BufReader::new(reader).lines().map_while(|line| line.ok()) {
                let Ok(answer) = serde_json::from_str::<Answer>(&text) else { break };
                let asker = of_reader.lock().open.as_mut().and_then(|open| open.remove(&answer.id));
                if let Some(asker) = asker {
                    // It may have stopped waiting.
                    let _ = asker.send(answer);
                }
            }
            of_reader.lock().open = None;
        });
        Ok(Self { line: Mutex::new(line), waiting })
    }

    fn ask(&self, script: &str) -> Result<Receiver<Answer>> {
        let (sender, receiver) = channel();
        let id = {
            let mut waiting = self.waiting.lock();
            waiting.next += 1;
            let id = waiting.next;
            waiting.open.as_mut().context("the machine is off")?.insert(id, sender);
            id
        };
        let text = serde_json::to_string(&Question { id, script: script.to_owned() })? + "\n";
        self.line.lock().write_all(text.as_bytes()).context("the machine is off")?;
        Ok(receiver)
    }

    /// Runs a script.
    pub(super) fn run(&self, script: &str, limit: Duration) -> Result<Said> {
        match self.ask(script)?.recv_timeout(limit) {
            Ok(Answer { code, out, err, .. }) => Ok(Said { code, out, err }),
            Err(RecvTimeoutError::Timeout) => bail!("no answer within {limit:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine went off"),
        }
    }
}
