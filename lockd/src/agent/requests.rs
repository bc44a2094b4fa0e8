//! What the clients of this node ask.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connection::Connection;
use super::control::{Ask, Told};
use super::core::Core;
use super::{forward, status};
use crate::local::message::{Failure, Request, Response};
use crate::machine::{Command, Operation, Refusal, Report, decode_command};

/// Answers one request. What lasts longer than `patience` is given up.
pub(super) async fn answer(
    core: &Arc<Core>,
    connection: &Arc<Connection>,
    request: Request,
    patience: Option<Duration>,
) -> Result<Response, Failure> {
    match request {
        Request::Register { kind, number, known } => {
            let registered = core.clients.register(core, connection, kind, number, known, patience).await?;
            Ok(Response::Registered(registered))
        }
        Request::Command(command) => propose(core, connection, command, patience).await,
        Request::Query(query) => Ok(Response::Answer(core.route.query(query, patience).await?)),
        Request::Forward { to, request } => {
            Ok(Response::Forwarded(forward::to(core, to, request, patience).await?))
        }
        Request::Status => Ok(Response::Document(status::cluster(core).await)),
        Request::Voters(change) => match core.route.ask_leader(Ask::Voters(change), patience).await? {
            Told::Done => Ok(Response::Done),
            other => Err(super::route::unexpected(&other)),
        },
        Request::Watch(on) => {
            connection.watching.store(on, Ordering::Release);
            Ok(Response::Done)
        }
        Request::Drained { volume, victim } => {
            connection.drained(volume, victim);
            core.fences.notify_one();
            Ok(Response::Done)
        }
    }
}

/// Has a client's command applied. It comes in a slot, so that it may be sent to the leader as often as needed (L5).
async fn propose(
    core: &Arc<Core>,
    connection: &Connection,
    command: Vec<u8>,
    patience: Option<Duration>,
) -> Result<Response, Failure> {
    let decoded = decode_command(&command).map_err(|error| Failure::Refused(error.to_string()))?;
    let leaving = match &decoded {
        Command::Client { client, operation, .. } => {
            if !connection.has(*client) {
                let refusal = Refusal::ClientEnded(*client);
                return Err(Failure::Refused(refusal.to_string()));
            }
            matches!(operation, Operation::Leave).then_some(*client)
        }
        Command::RegisterVolume { .. } => None,
        Command::FenceReport { reporter, report: Report::Fenced { .. }, .. }
            if core.session_now().is_some_and(|open| open.session == *reporter) =>
        {
            None
        }
        _ => return Err(Failure::Refused("this command is not for clients".to_owned())),
    };
    let reply = core.route.propose_encoded(command, patience).await?;
    if let Some(client) = leaving {
        core.clients.remove(client);
    }
    Ok(Response::Replied(reply))
}
