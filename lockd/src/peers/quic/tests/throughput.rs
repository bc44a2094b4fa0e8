//! How fast it is: printed, not judged. `cargo test --release -p lockd throughput -- --ignored --nocapture`

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::world::{LONG, World, echo, name};
use crate::peers::{Channel, Peers};

const SPAN: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput_on_loopback() {
    let world = World::new(&["n1", "n2"]);
    let (one, _two) = (Arc::new(world.start("n1")), world.start("n2"));
    echo(&one, "n2", LONG).await.unwrap();
    for (depth, size) in [(1, 128), (32, 128), (200, 128), (32, 4 << 10), (16, 256 << 10)] {
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..depth {
            let one = one.clone();
            tasks.spawn(async move {
                let mut done = 0_u64;
                while start.elapsed() < SPAN {
                    one.request(&name("n2"), Channel::File, vec![7; size], LONG).await.unwrap();
                    done += 1;
                }
                done
            });
        }
        let mut done = 0;
        while let Some(task) = tasks.join_next().await {
            done += task.unwrap();
        }
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = done as f64 / start.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let volume = rate * size as f64 / 1e6;
        let path = one.path_stats(&name("n2"));
        println!(
            "{size:>7} bytes, depth {depth:>3}: {rate:>8.0} requests/s, {volume:>7.1} MB/s each way; {path}"
        );
    }
}
