//! Questions to lockd, by whoever is not registered.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::error::ClientError;
use super::link::{Dialogue, Link, LinkUser};
use crate::ids::ResourceId;
use crate::local::frame::FrameError;
use crate::local::message::{Failure, FromLockd, Recipient, Request, Response, VotersChange};
use crate::local::run_dir::RunDir;
use crate::machine::{Answer, Query, ResourceInfo};

use super::holder::{HolderReply, HolderRequest};

/// A connection to the lockd of a node.
#[derive(Debug)]
pub struct Connection {
    link: Arc<Link>,
    patience: Duration,
}

struct Nobody;

impl LinkUser for Nobody {
    fn introduce(&self, _dialogue: &mut Dialogue<'_>) -> Result<(), FrameError> {
        Ok(())
    }

    fn told(&self, _message: FromLockd) {}
}

impl Connection {
    /// Connects to the lockd of `run_dir`. `patience` is how long it is waited for, and for each answer.
    ///
    /// # Errors
    /// If it is not there in time.
    pub fn open(run_dir: &RunDir, patience: Duration) -> Result<Self, ClientError> {
        let link = Arc::new(Link::new(run_dir.socket()));
        let running = Arc::clone(&link);
        std::thread::Builder::new().name("lockd-link".to_owned()).spawn(move || running.run(&Nobody))?;
        let connection = Self { link, patience };
        let deadline = Instant::now() + patience;
        while let Some(trouble) = connection.link.trouble() {
            if Instant::now() >= deadline {
                return Err(trouble);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(connection)
    }

    /// The same connection, with another patience for answers.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Asks the state a question.
    ///
    /// # Errors
    /// If there is no quorum, or no answer in time.
    pub fn query(&self, query: Query) -> Result<Answer, ClientError> {
        match ask(&self.link, Request::Query(query), Some(self.patience))? {
            Response::Answer(answer) => Ok(answer),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// All held resources.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub fn resources(&self) -> Result<Vec<ResourceInfo>, ClientError> {
        let mut all = Vec::new();
        let mut after: Option<ResourceId> = None;
        loop {
            let Answer::Resources(page) = self.query(Query::Resources { volume: None, after })? else {
                return Err(ClientError::Unexpected);
            };
            let Some(last) = page.last() else { return Ok(all) };
            after = Some(last.resource.clone());
            all.extend(page);
        }
    }

    /// Sends `request` to a program in the cluster and waits for its answer.
    ///
    /// # Errors
    /// If there is no such program, or no answer in time. What was asked for may then have been done.
    pub fn ask_holder(&self, to: Recipient, request: &HolderRequest) -> Result<HolderReply, ClientError> {
        self.ask_holder_within(to, request, self.patience)
    }

    /// The same, with another patience for this answer.
    ///
    /// # Errors
    /// As [`Connection::ask_holder`].
    pub fn ask_holder_within(
        &self,
        to: Recipient,
        request: &HolderRequest,
        patience: Duration,
    ) -> Result<HolderReply, ClientError> {
        let request = request.encode().map_err(ClientError::Failed)?;
        match ask(&self.link, Request::Forward { to, request }, Some(patience))? {
            Response::Forwarded(answer) => HolderReply::decode(&answer).map_err(ClientError::Failed),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The state of the cluster as a JSON document; there is one also when there is no quorum.
    ///
    /// # Errors
    /// If lockd does not answer.
    pub fn status(&self) -> Result<String, ClientError> {
        document(ask(&self.link, Request::Status, Some(self.patience))?)
    }

    /// Changes the voters.
    ///
    /// # Errors
    /// If the leader refuses, or there is none.
    pub fn change_voters(&self, change: VotersChange) -> Result<(), ClientError> {
        ask(&self.link, Request::Voters(change), Some(self.patience)).map(drop)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.close();
    }
}

fn document(response: Response) -> Result<String, ClientError> {
    match response {
        Response::Document(document) => Ok(document),
        _ => Err(ClientError::Unexpected),
    }
}

/// Asks and waits: for ever, or a little longer than lockd has been told to try.
pub(super) fn ask(
    link: &Link,
    request: Request,
    patience: Option<Duration>,
) -> Result<Response, ClientError> {
    let (sender, receiver) = sync_channel::<Result<Response, Failure>>(1);
    // The receiver may have given up.
    let on_response = Box::new(move |response| drop(sender.send(response)));
    let id = link.request(request, patience, on_response)?;
    let response = match patience {
        Some(patience) => {
            let patience = patience.saturating_add(Duration::from_secs(2));
            receiver.recv_timeout(patience).map_err(|error| match error {
                RecvTimeoutError::Timeout => {
                    link.forget(id);
                    link.trouble().unwrap_or(ClientError::TimedOut(patience))
                }
                RecvTimeoutError::Disconnected => ClientError::Closed,
            })?
        }
        None => receiver.recv().map_err(|_| ClientError::Closed)?,
    };
    Ok(response?)
}
