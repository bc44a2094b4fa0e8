use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{Connection, ConnectionError};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::world::{LONG, World, echo, name};
use crate::cluster::Program;
use crate::cluster::tls::Verdict;
use crate::peers::FRAME_MAX;
use crate::peers::quic::frame::{FrameReader, Header, Kind};
use crate::peers::quic::hello::Hello;
use crate::peers::quic::transport::{self, Close};
use crate::peers::quic::versions;

/// A connection to node 1 with the certificate of node 2, over which anything can be sent.
async fn raw(world: &World) -> (quinn::Endpoint, Connection) {
    let credentials = world.config("n2").credentials;
    let socket = transport::socket(SocketAddr::new(world.address("n2"), 0)).unwrap();
    let settings = transport::endpoint_config(&credentials).unwrap();
    let endpoint = quinn::Endpoint::new(settings, None, socket, Arc::new(quinn::TokioRuntime)).unwrap();
    let config =
        transport::client_config(&credentials, &name("n1"), versions::SPOKEN, Verdict::default()).unwrap();
    let address = SocketAddr::new(world.address("n1"), 7400);
    let connection = endpoint.connect_with(config, address, transport::SERVER_NAME).unwrap().await.unwrap();
    (endpoint, connection)
}

fn frame(kind: Kind, channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Header { kind, channel, length: payload.len(), id: 1 }.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

async fn closed_for_garbage(connection: &Connection) {
    match tokio::time::timeout(LONG, connection.closed()).await.expect("it is closed") {
        ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code, Close::Protocol.code());
            assert!(!close.reason.is_empty());
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_datagrams_do_no_harm() {
    let world = World::new(&["n1", "n2"]);
    let (one, two) = (world.start("n1"), world.start("n2"));
    echo(&two, "n1", LONG).await.unwrap();
    let socket = UdpSocket::bind(SocketAddr::new(world.address("n2"), 0)).unwrap();
    let mut random = SmallRng::seed_from_u64(3);
    for n in 0..3000 {
        let mut bytes = vec![0; random.random_range(0..1500)];
        random.fill_bytes(&mut bytes);
        if n % 2 == 0 && bytes.len() > 5 {
            // The beginning of a QUIC Initial of version 1.
            bytes[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        socket.send_to(&bytes, SocketAddr::new(world.address("n1"), 7400)).unwrap();
    }
    echo(&two, "n1", LONG).await.unwrap();
    echo(&one, "n2", LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_let_in_and_does_not_say_hello_is_put_out() {
    let world = World::new(&["n1", "n2"]);
    let _one = world.start("n1");
    let mut random = SmallRng::seed_from_u64(4);
    for round in 0..24 {
        let (_endpoint, connection) = raw(&world).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let bytes = match round {
            0 => frame(Kind::Hello, 0, b"no hello"),
            1 => frame(Kind::Hello, 0, &[0; 5000]),
            2 => frame(Kind::Request, 1, b"too early"),
            3 => Header { kind: Kind::Hello, channel: 0, length: FRAME_MAX + 1, id: 0 }.encode().to_vec(),
            _ => {
                let mut bytes = vec![0; random.random_range(16..200)];
                random.fill_bytes(&mut bytes);
                bytes
            }
        };
        send.write_all(&bytes).await.unwrap();
        closed_for_garbage(&connection).await;
    }
    let two = world.start("n2");
    echo(&two, "n1", LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_garbage_after_the_hello_is_put_out() {
    let world = World::new(&["n1", "n2"]);
    let _one = world.start("n1");
    let mut random = SmallRng::seed_from_u64(5);
    for round in 0..24 {
        let (_endpoint, connection) = raw(&world).await;
        let (mut send, receive) = connection.open_bi().await.unwrap();
        let hello = Hello { program: Program::Lockd, incarnation: 7 }.encode();
        send.write_all(&frame(Kind::Hello, 0, &hello)).await.unwrap();
        let mut reader = FrameReader::new(receive);
        let welcome = reader.header().await.unwrap().unwrap();
        assert_eq!(welcome.kind, Kind::Welcome);
        reader.payload(welcome.length).await.unwrap();
        let bytes = match round {
            0 => frame(Kind::Request, 99, b"an unknown channel"),
            1 => frame(Kind::Reply, 1, b"nobody asked"),
            2 => frame(Kind::Welcome, 1, &hello),
            3 => Header { kind: Kind::Request, channel: 1, length: FRAME_MAX + 1, id: 0 }.encode().to_vec(),
            _ => {
                let mut bytes = vec![0; random.random_range(16..200)];
                random.fill_bytes(&mut bytes);
                bytes
            }
        };
        if round % 2 == 0 {
            send.write_all(&bytes).await.unwrap();
        } else {
            let (mut lane, _answers) = connection.open_bi().await.unwrap();
            lane.write_all(&bytes).await.unwrap();
            lane.finish().unwrap();
        }
        closed_for_garbage(&connection).await;
    }
    let two = world.start("n2");
    echo(&two, "n1", LONG).await.unwrap();
}
