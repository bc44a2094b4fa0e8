//! The watchdog of a host, which is the kernel's softdog here: what lockd promises of it
//! (`lockd/src/agent/watchdog.rs`).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::cluster::Network;
use lab::vmlab::{Nodes, VmLab};

const LEASE: Duration = Duration::from_secs(3);
/// A second longer than the watchdog's time-out.
const GRACE: Duration = Duration::from_secs(4);
const TIMEOUT: Duration = Duration::from_secs(3);
/// Pats come every half second, and an emulated machine is late.
const LATE: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(40);

#[test]
fn a_host_is_restarted_before_the_others_go_on_and_left_alone_when_lockd_ends_in_order() -> Result<()> {
    VmLab::run(|lab| {
        let top = format!(
            "lease_s = {}.0\ngrace_s = {}.0\nwatchdog = \"/dev/watchdog\"",
            LEASE.as_secs(),
            GRACE.as_secs()
        );
        let volume = "lun = [\"nbd://10.78.0.1:10809/vms\"]\nfence = \"lease\"\ntarget_quiesce_s = 1.0";
        let mut nodes = Nodes::start(lab, 2, &top, volume)?;
        let first = nodes.node(1);
        first.sh("truncate -s 64M /dev/shm/lun.img && modprobe softdog")?;
        first.launch("target", "csv-target --export vms --listen 10.78.0.1:10809 --file /dev/shm/lun.img")?;
        first.wait("the target is ready", "grep -q ready /log/target")?;
        nodes.node(2).sh("modprobe softdog")?;
        nodes.start_lockd()?;
        nodes.format()?;
        nodes.mount(1)?;

        // In order: it is told to stand down.
        nodes.mount(2)?;
        nodes.unmount(2)?;
        nodes.node(2).stop("lockd")?;
        let ended = Instant::now();
        nodes.node(1).sh(&Nodes::write("disk", 'A'))?;
        thread::sleep((TIMEOUT + LATE).saturating_sub(ended.elapsed()));
        ensure!(nodes.node(2).is_on(), "it is restarted although lockd has ended in order");

        // Cut off with a volume mounted: its lease runs out.
        nodes.launch_lockd(2)?;
        nodes.await_lockd(2)?;
        nodes.mount(2)?;
        nodes.acquire(2, "disk")?;
        nodes.node(2).sh(&Nodes::write("disk", 'B'))?;
        thread::sleep(TIMEOUT + LATE);
        ensure!(nodes.node(2).is_on(), "it is restarted although the lease runs");
        let cut = Instant::now();
        nodes.node(2).plug(Network::Lan, false)?;
        let (off, free) = thread::scope(|scope| {
            let free = scope.spawn(|| {
                nodes.node(1).run_within(&Nodes::write("disk", 'C'), LIMIT).map(|said| (said, cut.elapsed()))
            });
            let off = nodes.node(2).goes_off(LIMIT).map(|_| cut.elapsed());
            (off, free.join().expect("no panic"))
        });
        let (off, (said, free)) = (off?, free?);
        eprintln!("cut off: the host is off after {off:.1?}, and its file free after {free:.1?}");
        ensure!(said.code == 0, "{said:?}");
        ensure!(off < LEASE + TIMEOUT + LATE, "it is restarted only after {off:?}");
        ensure!(off < free, "it is on for {off:?}, and its file is given away after {free:?}");
        nodes.holds(1, "disk", 'C')?;

        // A lockd that hangs.
        let stopped = Instant::now();
        nodes.node(1).signal("lockd", "STOP")?;
        nodes.node(1).goes_off(LIMIT)?;
        let off = stopped.elapsed();
        eprintln!("lockd stopped: the host is off after {off:.1?}");
        ensure!(off < TIMEOUT + LATE, "it is restarted only after {off:?}");
        if std::env::var_os("CSV_SOAK").is_none() {
            return Ok(());
        }

        // One that is killed: its device is closed, but not in order.
        nodes.node_mut(1).power_on(lab)?;
        nodes.node(1).sh("modprobe softdog")?;
        nodes.launch_lockd(1)?;
        nodes.await_lockd(1)?;
        thread::sleep(TIMEOUT + LATE);
        ensure!(nodes.node(1).is_on(), "it is restarted although lockd pats");
        let killed = Instant::now();
        nodes.node(1).signal("lockd", "KILL")?;
        nodes.node(1).goes_off(LIMIT)?;
        let off = killed.elapsed();
        eprintln!("lockd killed: the host is off after {off:.1?}");
        ensure!(off < TIMEOUT + LATE, "it is restarted only after {off:?}");
        Ok(())
    })
}
