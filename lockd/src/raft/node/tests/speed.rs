//! How fast commands are: not a test, a measurement. `cargo test --release -p lockd raft::node::tests::speed -- \
//! --ignored --nocapture`; RAFT_DIR is the disk.

use std::time::{Duration, Instant};

use super::cluster::Cluster;

async fn measure(cluster: &Cluster, clients: usize, span: Duration) -> (f64, f64) {
    let leader = cluster.leader().await;
    let node = cluster.node(&leader).clone();
    let begin = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move {
                let mut done = 0_u32;
                while begin.elapsed() < span {
                    node.propose(vec![7; 120]).await.unwrap();
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut done = 0.0;
    for task in tasks {
        done += f64::from(task.await.unwrap());
    }
    let rate = done / begin.elapsed().as_secs_f64();
    (rate, clients as f64 / rate * 1e3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn durable_commands_a_second() {
    for voters in [1, 3] {
        let cluster = Cluster::new(voters).await;
        for clients in [1, 4, 32, 128] {
            let (rate, millis) = measure(&cluster, clients, Duration::from_secs(3)).await;
            println!("{voters} voters, {clients:3} clients: {rate:8.0} commands/s, {millis:.3} ms each");
        }
        let leader = cluster.leader().await;
        let begin = Instant::now();
        for _ in 0..200 {
            cluster.node(&leader).confirm_leader().await.unwrap();
        }
        println!("{voters} voters: confirm_leader {:?} each", begin.elapsed() / 200);
        cluster.end().await;
    }
}
