use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[derive(Debug, Default)]
struct Echo {
    served: AtomicU64,
    from: Mutex<Vec<NodeName>>,
}

impl Serve for Echo {
    fn serve<'a>(
        &'a self,
        from: &'a NodeName,
        _channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>> {
        Box::pin(async move {
            self.served.fetch_add(1, Ordering::Relaxed);
            self.from.lock().push(from.clone());
            if frame == b"no" { Err(NotServed("not today".to_owned())) } else { Ok(frame) }
        })
    }
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn network() -> (LocalNetwork, Arc<LocalPeers>, Arc<Echo>, NodeName) {
    let network = LocalNetwork::new(7);
    let echo = Arc::new(Echo::default());
    network.start(&name("b"), echo.clone());
    (network.clone(), network.peers(&name("a")), echo, name("b"))
}

const WAIT: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_and_its_sender_named() {
    let (_, peers, echo, b) = network();
    assert_eq!(peers.request(&b, Channel::File, b"hello".to_vec(), WAIT).await, Ok(b"hello".to_vec()));
    assert_eq!(*echo.from.lock(), [name("a")]);
    let refused = peers.request(&b, Channel::File, b"no".to_vec(), WAIT).await.unwrap_err();
    assert_eq!(refused, PeerError::NotServed { node: b, why: "not today".to_owned() });
}

#[tokio::test(start_paused = true)]
async fn cut_links_and_stopped_nodes_answer_nothing_until_healed() {
    let (network, peers, echo, b) = network();
    let timed_out = Err(PeerError::TimedOut { node: b.clone(), within: WAIT });
    network.cut(&name("a"), &b);
    assert_eq!(peers.request(&b, Channel::Raft, vec![1], WAIT).await, timed_out);
    assert_eq!(echo.served.load(Ordering::Relaxed), 0);
    network.heal(&name("a"), &b);
    assert_eq!(peers.request(&b, Channel::Raft, vec![1], WAIT).await, Ok(vec![1]));

    network.cut_one_way(&b, &name("a"));
    assert_eq!(peers.request(&b, Channel::Raft, vec![1], WAIT).await, timed_out);
    assert_eq!(echo.served.load(Ordering::Relaxed), 2, "executed, the reply lost");
    network.heal_all();
    network.stop(&b);
    assert_eq!(peers.request(&b, Channel::Raft, vec![1], WAIT).await, timed_out);
    network.start(&b, echo);
    assert_eq!(peers.request(&b, Channel::Raft, vec![1], WAIT).await, Ok(vec![1]));
}

#[tokio::test(start_paused = true)]
async fn faults_happen_at_their_rate_and_by_their_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let (network, peers, echo, b) = network();
        let delay = Duration::from_micros(10)..=Duration::from_millis(2);
        network.set_faults(Faults { lose: 0.2, repeat: 0.3, delay });
        let mut answered = 0;
        for n in 0..200_u8 {
            answered += u64::from(peers.request(&b, Channel::Raft, vec![n], WAIT).await.is_ok());
        }
        runs.push((answered, echo.served.load(Ordering::Relaxed)));
    }
    assert_eq!(runs[0], runs[1]);
    let (answered, served) = runs[0];
    assert!((100..160).contains(&answered), "{answered}");
    assert!(served > answered + 20, "{served} executions of {answered} answered requests");
}
