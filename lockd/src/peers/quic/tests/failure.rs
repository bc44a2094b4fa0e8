use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::proxy::Proxy;
use super::world::{LONG, Oddities, SHORT, World, config, echo, fresh_address, name, until};
use crate::peers::quic::{PeerState, QuicConfig, QuicEndpoint};
use crate::peers::{Channel, PeerError, Peers};

/// A node in a runtime of its own, which ends with it as abruptly as a process does.
struct Process {
    runtime: Option<tokio::runtime::Runtime>,
    endpoint: Option<QuicEndpoint>,
}

impl Process {
    fn start(config: QuicConfig) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let endpoint = runtime.block_on(async { QuicEndpoint::start(config, Arc::new(Oddities)).unwrap() });
        Self { runtime: Some(runtime), endpoint: Some(endpoint) }
    }

    /// Ends it without a word to the others: when the endpoint closes, nobody is left to send that.
    fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_timeout(LONG);
        drop(self.endpoint.take());
    }
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_is_found_again() {
    let world = World::new(&["n1", "n2"]);
    let (one, two) = (Arc::new(world.start("n1")), world.start("n2"));
    echo(&one, "n2", LONG).await.unwrap();
    let hanging = tokio::spawn(one.request(&name("n2"), Channel::File, b"hang".to_vec(), LONG));
    until("it is in flight", || one.status()[0].in_flight == 1).await;
    two.stop().await;
    let lost = hanging.await.unwrap().unwrap_err();
    let why = "lockd of node n2 has been stopped".to_owned();
    assert_eq!(lost, PeerError::Lost { node: name("n2"), why });
    assert!(!lost.was_surely_not_executed());
    let stopped = two.request(&name("n1"), Channel::File, vec![1], LONG).await;
    assert!(matches!(stopped, Err(PeerError::Stopped)), "{stopped:?}");

    let unreachable = echo(&one, "n2", SHORT).await.unwrap_err();
    assert!(matches!(unreachable, PeerError::Unreachable { .. }), "{unreachable}");
    let waiting = tokio::spawn({
        let one = one.clone();
        async move { echo(&one, "n2", LONG).await }
    });
    let address = world.address("n2");
    drop(two);
    let mut attempts = 0;
    let again = loop {
        attempts += 1;
        assert!(attempts < 500, "the socket stays open");
        // The socket is closed by a task.
        match QuicEndpoint::start(world.config("n2"), Arc::new(Oddities)) {
            Ok(endpoint) => break endpoint,
            Err(error) => assert!(error.to_string().contains(&address.to_string()), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    waiting.await.unwrap().expect("a request waits for the connection within its time-out");
    assert_eq!(one.status()[0].incarnation, Some(again.incarnation()));
    echo(&again, "n1", LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_that_is_back_tells_by_a_reset() {
    let world = World::new(&["n1", "n2"]);
    let one = Arc::new(world.start("n1"));
    let settings = world.config("n2");
    let two = apart(move || Process::start(settings)).await;
    echo(&one, "n2", LONG).await.unwrap();
    echo_from(&two).await;
    let hanging = tokio::spawn(one.request(&name("n2"), Channel::File, b"hang".to_vec(), LONG));
    until("it is in flight", || one.status()[0].in_flight == 1).await;
    let settings = world.config("n2");
    let two = apart(move || {
        two.kill();
        Process::start(settings)
    })
    .await;
    let lost = hanging.await.unwrap();
    assert_eq!(lost, Err(PeerError::Lost { node: name("n2"), why: "it has restarted".to_owned() }));
    echo(&one, "n2", LONG).await.unwrap();
    // Its former incarnation is known to be dead, although it has not said so.
    echo_from(&two).await;
    assert!(one.conflicts().is_empty());
    apart(move || two.kill()).await;
}

async fn echo_from(process: &Process) {
    echo(process.endpoint.as_ref().unwrap(), "n1", LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_answer_is_timed_out_and_a_dead_network_is_noticed() {
    let world = World::new(&["n1", "n2"]);
    let middle = fresh_address();
    let port = 7400;
    let proxy = Proxy::start(SocketAddr::new(middle, port), SocketAddr::new(world.address("n2"), port)).await;
    let behind = world.variant(&[("n1", world.address("n1")), ("n2", middle)], port);
    let one = Arc::new(QuicEndpoint::start(config(&behind, "n1"), Arc::new(Oddities)).unwrap());
    let _two = world.start("n2");
    let hang = one.request(&name("n2"), Channel::File, b"hang".to_vec(), SHORT).await;
    assert_eq!(hang, Err(PeerError::TimedOut { node: name("n2"), within: SHORT }));
    echo(&one, "n2", LONG).await.expect("it hangs in one request only");

    proxy.set_cut(true);
    let lost = one.request(&name("n2"), Channel::File, vec![1], LONG).await;
    let why = "nothing came from it any more".to_owned();
    assert_eq!(lost, Err(PeerError::Lost { node: name("n2"), why }));
    let unreachable = echo(&one, "n2", SHORT).await.unwrap_err();
    assert!(matches!(unreachable, PeerError::Unreachable { .. }), "{unreachable}");
    assert!(one.status()[0].last_contact.unwrap() > Duration::from_secs(2));
    proxy.set_cut(false);
    echo(&one, "n2", LONG).await.expect("it connects again by itself");
    assert_eq!(one.status()[0].state, PeerState::Connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_stays() {
    let world = World::new(&["n1", "n2"]);
    let (one, two) = (world.start("n1"), world.start("n2"));
    echo(&one, "n2", LONG).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(one.status()[0].state, PeerState::Connected);
    assert!(one.status()[0].last_contact.unwrap() < Duration::from_secs(4));
    assert!(two.status()[0].asks_us);
}
