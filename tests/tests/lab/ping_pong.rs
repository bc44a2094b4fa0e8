//! ctdb's `ping_pong -rw`: byte-range locks handed round a ring by two nodes, and a byte counted under each.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::suites::is_soak;
use lab::wait::until;
use lab::{Cluster, Running, programs};
use tempfile::TempDir;

use crate::volume::with_three_mounts;

/// One more lock than there are players, as ctdb's manual asks.
const LOCKS: &str = "3";

/// One player; what it prints goes to a file.
struct Player {
    process: Running,
    output: std::path::PathBuf,
}

impl Player {
    fn start(cluster: &Cluster, number: u8, scratch: &Path) -> Result<Self> {
        let name = format!("ping_pong on n{number}");
        let output = scratch.join(format!("n{number}.out"));
        // Its standard output is a file, so that nothing is lost when it is killed.
        let mut command = cluster.exec(&format!("n{number}"), "sh")?;
        command.args(["-c", r#"exec "$1" -rw "$2" "$3" >"$4""#, "sh"]);
        command
            .arg(programs::installed("ping_pong")?)
            .arg(cluster.path(number, "ring"))
            .arg(LOCKS)
            .arg(&output);
        let process = Running::start(&name, &mut command, scratch.join(format!("n{number}.log")))?;
        Ok(Self { process, output })
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Every increment that it has seen, in order: it names one when it changes.
    fn increments(&self) -> Vec<u32> {
        let said = self.said();
        let parts = said.split(['\n', '\r']).filter_map(|line| line.trim().strip_prefix("data increment = "));
        parts.filter_map(|number| number.parse().ok()).collect()
    }

    /// The locks that it took in each second.
    fn rates(&self) -> Vec<u32> {
        let said = self.said();
        let parts = said.split(['\n', '\r']).filter_map(|line| line.trim().strip_suffix("locks/sec"));
        parts.filter_map(|number| number.trim().parse().ok()).collect()
    }
}

#[test]
fn ping_pong_keeps_its_increment_at_two_on_two_nodes() -> Result<()> {
    let seconds: u8 = if is_soak() { 60 } else { 4 };
    let scratch = TempDir::new()?;
    with_three_mounts(|cluster| {
        std::fs::write(cluster.path(3, "ring"), b"")?;
        let players =
            [Player::start(cluster, 1, scratch.path())?, Player::start(cluster, 2, scratch.path())?];
        let all_see_two = || players.iter().all(|player| player.increments().last() == Some(&2));
        let said = || players.each_ref().map(Player::said);
        until("both see an increment of 2", Duration::from_secs(20), || all_see_two().then_some(()))
            .with_context(|| format!("{:?}", said()))?;
        let before = players.each_ref().map(Player::increments);
        let seen = players.each_ref().map(|player| player.rates().len());
        until("both have played on", Duration::from_secs(u64::from(seconds) + 30), || {
            let more =
                |(player, seen): (&Player, &usize)| player.rates().len() >= seen + usize::from(seconds);
            players.iter().zip(&seen).all(more).then_some(())
        })
        .with_context(|| format!("{:?}", said()))?;
        ensure!(players.each_ref().map(Player::increments) == before, "it did not stay at 2: {:?}", said());
        let rates = players.each_ref().map(Player::rates);
        // How many is the disk's matter, and is printed; but locks there must be.
        ensure!(rates.iter().flatten().all(|rate| *rate > 0), "a second without a lock: {rates:?}");
        eprintln!("locks a second on n1 and n2: {rates:?}");
        for mut player in players {
            player.process.signal(libc::SIGTERM);
            player.process.end(Duration::from_secs(10))?;
        }
        // Nothing is held by those that are gone: one alone counts by itself.
        let alone = Player::start(cluster, 3, scratch.path())?;
        let sees_one = || (alone.increments().last() == Some(&1)).then_some(());
        until("one alone sees an increment of 1", Duration::from_secs(20), sees_one)
            .with_context(|| alone.said())
    })
}
