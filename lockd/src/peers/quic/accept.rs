//! Takes the connections of the other nodes and serves their requests.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, Incoming, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::control::{Control, introduction};
use super::endpoint::Shared;
use super::frame::{FrameError, FrameReader, Header, Kind};
use super::hello::Hello;
use super::inbound::Inbound;
use super::rooms::Rooms;
use super::transport::{Close, close, explain};
use super::writer::{Outgoing, QUEUE, write_frames};
use crate::ids::NodeName;
use crate::peers::{Channel, FRAME_MAX, NotServed};

/// How many handshakes may go on at the same time; more are refused, and come again.
const HANDSHAKES: usize = 64;
/// From so many on, who comes must first prove that his address is his.
const HANDSHAKES_UNPROVEN: usize = 16;
const HANDSHAKE_TIME: Duration = Duration::from_secs(3);

/// Takes connections until the endpoint closes.
pub(super) async fn accept_all(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    while let Some(incoming) = shared.endpoint.accept().await {
        let busy = HANDSHAKES - handshakes.available_permits();
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if busy >= HANDSHAKES_UNPROVEN && !incoming.remote_address_validated() && incoming.may_retry() {
            // Fails only for who has proven it already.
            let _ = incoming.retry();
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            let admitted = timeout(HANDSHAKE_TIME, admit(&shared, incoming)).await;
            drop(permit);
            if let Ok(Some((inbound, reader))) = admitted {
                serve_connection(shared, inbound, reader).await;
            }
        });
    }
}

/// The handshake: who is it, and may he in?
async fn admit(shared: &Arc<Shared>, incoming: Incoming) -> Option<(Arc<Inbound>, FrameReader)> {
    let address = incoming.remote_address();
    let turned_away = |error: &ConnectionError| {
        let failure = explain(error, &shared.versions);
        shared.turned_away(address, &failure.why);
    };
    let connecting = incoming.accept().inspect_err(turned_away).ok()?;
    let connection = connecting.await.inspect_err(turned_away).ok()?;
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let identity = match shared.credentials.identify(certificates.first()?) {
        Ok(identity) => identity,
        Err(error) => {
            shared.turned_away(address, &error.to_string());
            close(&connection, Close::Protocol, &error.to_string());
            return None;
        }
    };
    let from = identity.node;
    let introduced = async {
        let (send, receive) = connection.accept_bi().await.ok()?;
        let mut reader = FrameReader::new(receive);
        match introduction(&mut reader, Kind::Hello).await {
            Ok(hello) => Some((Control::new(send), reader, hello)),
            Err(error) => {
                close_for(&connection, &from, &error);
                None
            }
        }
    };
    let (control, reader, hello) = introduced.await?;
    if hello.program != shared.program {
        let why = format!("this is the port of {}, not of {}", shared.program, hello.program);
        shared.turned_away(address, &why);
        close(&connection, Close::OtherProgram, &why);
        return None;
    }
    let inbound = Arc::new(Inbound { from, incarnation: hello.incarnation, connection, control });
    shared.register(&inbound).await.ok()?;
    let us = Hello { program: shared.program, incarnation: shared.incarnation };
    if inbound.control.introduce(Kind::Welcome, us).await.is_err() {
        shared.unregister(&inbound);
        return None;
    }
    shared.heard_of(&inbound.from);
    Some((inbound, reader))
}

async fn serve_connection(shared: Arc<Shared>, inbound: Arc<Inbound>, mut control: FrameReader) {
    let connection = &inbound.connection;
    let rooms = Arc::new(Rooms::new(shared.limits));
    let serve_lanes = async {
        while let Ok((send, receive)) = connection.accept_bi().await {
            tokio::spawn(serve_lane(shared.clone(), inbound.clone(), rooms.clone(), send, receive));
        }
    };
    tokio::select! {
        () = serve_lanes => {}
        end = inbound.control.run(&mut control) => match end {
            Err(error) => close_for(connection, &inbound.from, &error),
            Ok(()) => close(connection, Close::Protocol, "the control stream ended"),
        },
    }
    shared.unregister(&inbound);
}

async fn serve_lane(
    shared: Arc<Shared>,
    inbound: Arc<Inbound>,
    rooms: Arc<Rooms>,
    send: SendStream,
    receive: RecvStream,
) {
    let (queue, replies) = mpsc::channel(QUEUE);
    tokio::spawn(write_frames(send, replies));
    let mut reader = FrameReader::new(receive);
    if let Err(error) = serve_requests(&shared, &inbound, &rooms, &queue, &mut reader).await {
        close_for(&inbound.connection, &inbound.from, &error);
    }
}

async fn serve_requests(
    shared: &Arc<Shared>,
    inbound: &Arc<Inbound>,
    rooms: &Rooms,
    queue: &mpsc::Sender<Outgoing>,
    reader: &mut FrameReader,
) -> Result<(), FrameError> {
    let link = shared.links.get(&inbound.from);
    while let Some(header) = reader.header().await? {
        let channel = Channel::from_byte(header.channel);
        let (Kind::Request, Some(channel)) = (header.kind, channel) else {
            return Err(FrameError::Garbage("it is no request on a known channel"));
        };
        // Without room nothing more is read from this lane: the sender waits.
        let place = rooms.enter(channel, header.length).await;
        let frame = reader.payload(header.length).await?;
        if let Some(link) = link {
            link.contact.note();
        }
        // It may outlive the endpoint, and must not keep its socket open.
        let (serve, from, queue) = (shared.serve.clone(), inbound.from.clone(), queue.clone());
        tokio::spawn(async move {
            let reply = serve.serve(&from, channel, frame).await;
            let (kind, payload) = match reply {
                Ok(reply) if reply.len() > FRAME_MAX => {
                    tracing::warn!(%from, %channel, bytes = reply.len(), "the reply is too large");
                    (Kind::TooLarge, (reply.len() as u64).to_le_bytes().to_vec())
                }
                Ok(reply) => (Kind::Reply, reply),
                Err(NotServed(why)) => (Kind::NotServed, why.into_bytes()),
            };
            let header = Header { kind, channel: channel.byte(), length: payload.len(), id: header.id };
            // If the connection is lost, nobody waits for it any more.
            let _ = queue.send(Outgoing { header, payload, place: Some(place) }).await;
        });
    }
    Ok(())
}

/// Ends a connection over which something came that is not our protocol.
fn close_for(connection: &Connection, from: &NodeName, error: &FrameError) {
    if connection.close_reason().is_some() {
        return;
    }
    if !matches!(error, FrameError::Stream(_)) {
        tracing::warn!(node = %from, address = %connection.remote_address(), %error, "closing its connection");
    }
    close(connection, Close::Protocol, &error.to_string());
}
