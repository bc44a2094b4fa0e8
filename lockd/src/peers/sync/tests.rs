use std::sync::mpsc;

use super::*;
use crate::peers::local::LocalNetwork;

/// Answers with the frame, or closes.
#[derive(Debug)]
struct Mirror;

impl Service for Mirror {
    fn serve(&self, frame: Vec<u8>, on_reply: OnReply) {
        match frame.as_slice() {
            b"close" => on_reply(Err(CarrierError::Closed("the coordinator has stopped".to_owned()))),
            b"drop" => drop(on_reply),
            _ => {
                std::thread::spawn(move || on_reply(Ok(frame)));
            }
        }
    }
}

fn ask(carrier: &PeerCarrier, frame: &[u8]) -> Result<Vec<u8>, CarrierError> {
    let (sender, reply) = mpsc::channel();
    carrier.request(frame.to_vec(), Box::new(move |result| sender.send(result).unwrap()));
    reply.recv_timeout(Duration::from_secs(10)).unwrap()
}

#[test]
fn a_carrier_reaches_a_service_on_another_node() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let network = LocalNetwork::new(1);
    let (a, b): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
    network.start(&b, Arc::new(ServedBy(Mirror)));
    let wait = Duration::from_millis(100);
    let carrier =
        PeerCarrier::new(network.peers(&a), runtime.handle().clone(), b.clone(), Channel::File, wait);
    assert_eq!(ask(&carrier, b"hello"), Ok(b"hello".to_vec()));
    let closed = Err(CarrierError::Closed(
        "node b does not serve this: the peer has closed: the coordinator has stopped".to_owned(),
    ));
    assert_eq!(ask(&carrier, b"close"), closed);
    assert!(matches!(ask(&carrier, b"drop"), Err(CarrierError::Closed(_))));
    network.cut(&a, &b);
    assert_eq!(ask(&carrier, b"hello"), Err(CarrierError::TimedOut(wait)));
    network.heal_all();
    assert_eq!(ask(&carrier, b"hello"), Ok(b"hello".to_vec()));

    network.cut(&a, &b);
    let (sender, reply) = mpsc::channel();
    carrier.request(b"hello".to_vec(), Box::new(move |result| sender.send(result).unwrap()));
    runtime.shutdown_background();
    let ended = reply.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(ended.is_err(), "the runtime has ended under it");
}
