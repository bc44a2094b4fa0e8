//! Makes the connections to the other nodes, and makes them again when they are lost.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::timeout;

use super::control::{Control, introduction};
use super::endpoint::Shared;
use super::frame::{FrameReader, Kind};
use super::hello::Hello;
use super::link::{Link, LinkState};
use super::outbound::Outbound;
use super::transport::{Close, Failure, SERVER_NAME, close, explain};
use super::{transport, versions};
use crate::cluster::tls::Verdict;

/// How long an attempt may take. QUIC repeats its first packet at growing intervals; a new attempt begins anew.
const ATTEMPT: Duration = Duration::from_secs(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// After a refusal it goes on more slowly: a person has to act first.
const BACKOFF_REFUSED: Duration = Duration::from_secs(3);
/// How often a connection is looked at for signs of life that are no replies.
const SAMPLE: Duration = Duration::from_millis(500);

/// Keeps a connection to a node, from the first request on, until the endpoint stops.
pub(super) async fn keep_connected(shared: Arc<Shared>, link: Arc<Link>) {
    let mut stop = shared.stop.subscribe();
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = connect_again_and_again(&shared, &link) => {}
    }
    link.state.send_replace(LinkState::Stopped);
}

async fn connect_again_and_again(shared: &Arc<Shared>, link: &Link) {
    let mut backoff = BACKOFF_FIRST;
    let mut last_failure = None;
    loop {
        if link.in_flight() == 0 {
            link.demand.notified().await;
        }
        link.state.send_replace(LinkState::Connecting(last_failure.take()));
        let attempt = timeout(ATTEMPT, connect(shared, link)).await;
        let failure = match attempt.unwrap_or_else(|_| Err(Failure::passing("it does not answer"))) {
            Ok(outbound) => {
                tracing::debug!(node = %link.node, address = %link.address, "connected");
                backoff = BACKOFF_FIRST;
                let outbound = Arc::new(outbound);
                link.state.send_replace(LinkState::Up(outbound.clone()));
                let failure = until_lost(shared, link, &outbound).await;
                tracing::info!(node = %link.node, why = failure.why, "connection lost");
                failure
            }
            Err(failure) => {
                if failure.refused {
                    tracing::warn!(node = %link.node, address = %link.address, why = failure.why, "no connection");
                } else {
                    tracing::debug!(node = %link.node, address = %link.address, why = failure.why, "no connection");
                }
                failure
            }
        };
        let rest = if failure.refused { BACKOFF_REFUSED } else { backoff };
        backoff = (backoff * 2).min(BACKOFF_MAX);
        last_failure = Some(failure.clone());
        link.state.send_replace(LinkState::Down(failure));
        // Not all nodes at the same moment.
        let rest = rest.mul_f64(rand::rng().random_range(0.75..1.25));
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = link.nudge.notified() => {}
        }
    }
}

async fn until_lost(shared: &Shared, link: &Link, outbound: &Outbound) -> Failure {
    let connection = &outbound.connection;
    let mut heard = connection.stats().udp_rx.datagrams;
    loop {
        match timeout(SAMPLE, connection.closed()).await {
            Ok(error) => return explain(&error, &shared.versions),
            Err(_) => {
                // The answers to keep-alives are no replies, but they are signs of life.
                let now = connection.stats().udp_rx.datagrams;
                if now > heard {
                    link.contact.note();
                }
                heard = now;
            }
        }
    }
}

async fn connect(shared: &Arc<Shared>, link: &Link) -> Result<Outbound, Failure> {
    let verdict = Verdict::default();
    let explain = |error: &quinn::ConnectionError| match verdict.take() {
        Some(refusal) => Failure::refusal(format!("we do not accept it: {refusal}")),
        None => explain(error, &shared.versions),
    };
    let config = transport::client_config(&shared.credentials, &link.node, &shared.versions, verdict.clone())
        .map_err(|error| Failure::refusal(error.to_string()))?;
    let connecting = shared
        .endpoint
        .connect_with(config, link.address, SERVER_NAME)
        .map_err(|error| Failure::passing(error.to_string()))?;
    let connection = connecting.await.map_err(|error| explain(&error))?;

    // The other side checks our certificate after our part of the handshake is done: its refusal comes here.
    let greet = async {
        let (send, receive) = connection.open_bi().await.ok()?;
        let control = Control::new(send);
        let us = Hello { program: shared.program, incarnation: shared.incarnation };
        control.introduce(Kind::Hello, us).await.ok()?;
        let mut reader = FrameReader::new(receive);
        match introduction(&mut reader, Kind::Welcome).await {
            Ok(them) => Some((control, reader, them)),
            Err(error) => {
                close(&connection, Close::Protocol, &error.to_string());
                None
            }
        }
    };
    let Some((control, mut reader, them)) = greet.await else {
        return Err(explain(&connection.closed().await));
    };
    let version = negotiated(&connection).unwrap_or(1);
    tokio::spawn({
        let connection = connection.clone();
        async move {
            // Whatever ends the control stream ends the connection.
            let end = control.run(&mut reader).await;
            let why = end.err().map_or("the control stream ended".to_owned(), |error| error.to_string());
            close(&connection, Close::Protocol, &why);
        }
    });
    link.contact.note();
    Ok(Outbound::new(connection, version, them.incarnation, link.contact.clone()))
}

/// The wire version that was agreed on.
pub(super) fn negotiated(connection: &quinn::Connection) -> Option<u16> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    versions::parse(&data.protocol?)
}
