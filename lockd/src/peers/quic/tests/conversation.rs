use std::sync::Arc;
use std::time::Duration;

use super::world::{LONG, Oddities, SHORT, World, echo, name, until};
use crate::peers::quic::{Limits, PeerState, QuicEndpoint};
use crate::peers::{Channel, FRAME_MAX, PeerError, Peers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_on_every_channel_and_the_sender_is_known() {
    let world = World::new(&["n1", "n2"]);
    let (one, two) = (world.start("n1"), world.start("n2"));
    for channel in Channel::ALL {
        let reply = one.request(&name("n2"), channel, b"who".to_vec(), LONG).await.unwrap();
        assert_eq!(reply, format!("n1 on {channel}").into_bytes());
    }
    assert_eq!(one.request(&name("n2"), Channel::File, Vec::new(), LONG).await, Ok(Vec::new()));
    assert_eq!(two.request(&name("n1"), Channel::Raft, b"who".to_vec(), LONG).await.unwrap(), b"n2 on raft");
    let ourselves = one.request(&name("n1"), Channel::Raft, b"who".to_vec(), LONG).await.unwrap();
    assert_eq!(ourselves, b"n1 on raft");
    let refused = one.request(&name("n2"), Channel::File, b"refuse".to_vec(), LONG).await;
    assert_eq!(refused, Err(PeerError::NotServed { node: name("n2"), why: "not here".to_owned() }));
    let unknown = one.request(&name("n9"), Channel::File, Vec::new(), LONG).await;
    assert_eq!(unknown, Err(PeerError::UnknownNode(name("n9"))));

    until("both directions are seen", || one.status()[0].asks_us && two.status()[0].asks_us).await;
    let status = one.status().remove(0);
    assert_eq!((&status.node, &status.state, status.version), (&name("n2"), &PeerState::Connected, Some(1)));
    assert_eq!(status.incarnation, Some(two.incarnation()));
    assert!(status.last_contact.unwrap() < LONG && status.round_trip.unwrap() < LONG);
    assert_eq!((status.requests, status.failures, status.in_flight), (7, 1, 0));
    assert!(one.certificate_days_left() > 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_up_to_the_limit_go_both_ways() {
    let world = World::new(&["n1", "n2"]);
    let (one, _two) = (world.start("n1"), world.start("n2"));
    for channel in [Channel::Raft, Channel::Block] {
        let mut frame: Vec<u8> = (0..FRAME_MAX).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
        let reply = one.request(&name("n2"), channel, frame.clone(), LONG).await.unwrap();
        assert!(reply == frame);
        frame.push(0);
        let too_large = PeerError::TooLarge { node: name("n2"), length: FRAME_MAX + 1, limit: FRAME_MAX };
        assert_eq!(one.request(&name("n2"), channel, frame, LONG).await, Err(too_large.clone()));
        assert_eq!(one.request(&name("n2"), channel, b"swell".to_vec(), LONG).await, Err(too_large));
    }
    echo(&one, "n2", LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_are_in_flight_and_are_answered_in_any_order() {
    let world = World::new(&["n1", "n2"]);
    let (one, _two) = (Arc::new(world.start("n1")), world.start("n2"));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..2000_u32 {
        let one = one.clone();
        tasks.spawn(async move {
            let mut frame = b"wait".to_vec();
            frame.push(u8::try_from(n * 31 % 20).unwrap());
            frame.extend_from_slice(&n.to_le_bytes());
            frame.resize(frame.len() + (n as usize * 37) % 20_000, 7);
            let channel = Channel::ALL[n as usize % Channel::ALL.len()];
            let reply = one.request(&name("n2"), channel, frame.clone(), LONG).await.unwrap();
            assert!(reply == frame);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(one.status()[0].in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_is_bounded_on_each_channel() {
    let world = World::new(&["n1", "n2"]);
    let mut config = world.config("n1");
    config.limits = Limits { requests: 4, bytes: 0 };
    let one = Arc::new(QuicEndpoint::start(config, Arc::new(Oddities)).unwrap());
    let _two = world.start("n2");
    echo(&one, "n2", LONG).await.unwrap();
    let hanging: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(one.request(&name("n2"), Channel::File, b"hang".to_vec(), Duration::from_secs(600)))
        })
        .collect();
    until("four requests are in flight", || one.status()[0].in_flight == 4).await;
    let busy = one.request(&name("n2"), Channel::File, vec![1], SHORT).await;
    let expected = PeerError::Busy { node: name("n2"), channel: Channel::File, limit: 4, within: SHORT };
    assert_eq!(busy, Err(expected));
    assert!(busy.unwrap_err().was_surely_not_executed());
    one.request(&name("n2"), Channel::Raft, vec![1], LONG)
        .await
        .expect("the other channels have their own room");
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    one.request(&name("n2"), Channel::File, vec![1], LONG).await.expect("who gave up has made room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_serves_lets_no_more_in_than_it_has_room_for() {
    let world = World::new(&["n1", "n2"]);
    let mut config = world.config("n2");
    config.limits = Limits { requests: 3, bytes: 0 };
    let _two = QuicEndpoint::start(config, Arc::new(Oddities)).unwrap();
    let one = world.start("n1");
    // Three that have given up still take the room of node 2, until they are done there.
    for _ in 0..3 {
        let frame = b"wait\xff".to_vec();
        let result = one.request(&name("n2"), Channel::File, frame, Duration::from_millis(1)).await;
        assert!(result.is_err());
    }
    one.request(&name("n2"), Channel::Raft, vec![1], LONG).await.unwrap();
    one.request(&name("n2"), Channel::File, vec![1], LONG)
        .await
        .expect("it waits for room, and then is served");
}
