//! Figures, when asked for: `cargo nextest run --release -p lockd --test cluster --run-ignored only -E 'test(figures::)'
//! --no-capture`.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lockd::client::LockClient;
use lockd::ids::ResourceId;
use lockd::locks::{ByteRange, LockMode};

use crate::site::{MOUNT, Site, VOLUME};

/// How long each figure is taken.
const SPAN: Duration = Duration::from_secs(5);

/// Lock + unlock pairs of one client in its own file, until the time is over.
fn pairs(client: &LockClient, ino: u64, until: Instant) -> u64 {
    let file = ResourceId::File(VOLUME, ino);
    let request = crate::locks::request(client, ino, LockMode::Exclusive);
    let mut done = 0;
    while Instant::now() < until {
        let (sender, receiver) = channel();
        client.set_lock(
            &file,
            request,
            false,
            Box::new(move |reply| sender.send(reply).expect("it is waited for")),
        );
        let grant = receiver.recv().expect("answered").expect("free");
        client.unlock(&file, request.owner, ByteRange::WHOLE, Some(grant)).expect("unlocked");
        done += 1;
    }
    done
}

#[test]
#[ignore = "a measurement"]
fn lock_and_unlock_pairs_a_second_with_three_voters() {
    let site = Site::start(3, 0, 8.0);
    let leader = site.leader();
    let follower = site.follower();
    site.register_volume(leader);
    for (place, node) in [("at the leader", leader), ("at a follower", follower)] {
        for count in [1_u64, 32] {
            let clients: Vec<LockClient> = (0..count).map(|_| site.client(node, MOUNT)).collect();
            let began = Instant::now();
            let done: u64 = std::thread::scope(|scope| {
                let parts: Vec<_> = clients
                    .iter()
                    .zip(1..)
                    .map(|(client, ino)| scope.spawn(move || pairs(client, ino, began + SPAN)))
                    .collect();
                parts.into_iter().map(|part| part.join().expect("no panic")).sum()
            });
            let rate = done as f64 / began.elapsed().as_secs_f64();
            println!("{count} clients {place}: {rate:.0} pairs a second");
        }
    }
}
