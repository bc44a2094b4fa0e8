//! `scsi-pr` on a block device: the kernel's own iSCSI disk, reserved by `IOC_PR_*`, from LIO.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::cluster::TARGET;
use lab::vmlab::{INITIATORS, Lio, Machine, Nodes, Plan, VmLab};

use crate::reservations::{LUN_BYTES, blocks_of};

const LIMIT: Duration = Duration::from_secs(30);

/// The keys of nodes, not of mounts.
fn are_of_nodes(keys: &[u64]) -> bool {
    keys.iter().all(|key| key >> 63 == 1)
}

#[test]
fn on_a_disk_of_the_kernel_who_is_fenced_writes_nothing() -> Result<()> {
    VmLab::run(|lab| {
        let disk = lab.disk("lun.img", LUN_BYTES)?;
        let mut plan = Plan::new("san", TARGET);
        plan.disks.push(disk.clone());
        let san = Machine::start(lab, plan)?;
        let volume = "lun = [\"/dev/sda\"]\nfence = \"scsi-pr\"\ntarget_quiesce_s = 1.0";
        let nodes = Nodes::start(lab, 2, "lease_s = 6.0", volume)?;
        let lio = Lio::on(&san)?;
        lio.serve()?;
        for (number, initiator) in (1..=2).zip(INITIATORS) {
            nodes.node(number).sh(&Lio::log_in(initiator))?;
            nodes.node(number).wait("the disk is there", "[ -b /dev/sda ]")?;
        }
        nodes.start_lockd()?;
        nodes.format()?;
        nodes.mount(1)?;
        let first = lio.keys()?;
        nodes.mount(2)?;
        let both = lio.keys()?;
        ensure!((first.len(), both.len()) == (1, 2), "a key for each host: {first:x?}, then {both:x?}");
        ensure!(lio.kind()?.contains("Write Exclusive Access, All Registrants"), "{}", lio.kind()?);
        let status = nodes.node(2).sh("csvfs status --json")?;
        ensure!(status.contains("scsi-pr: the target rejects"), "{status}");

        // The second node owns a file, and hangs.
        nodes.node(1).sh(&Nodes::write("disk", 'A'))?;
        nodes.acquire(2, "disk")?;
        nodes.node(2).sh(&Nodes::write("disk", 'B'))?;
        nodes.node(2).signal("csvfs", "STOP")?;
        nodes.node(2).signal("lockd", "STOP")?;
        nodes.node(1).sh(&Nodes::write("disk", 'C'))?;
        let log = nodes.node(1).log("lockd")?;
        ensure!(log.contains("/dev/sda: 1 keys preempted and aborted"), "{log}");
        ensure!(log.contains("and the unit was reset"), "LIO aborts nothing by itself: {log}");
        ensure!(lio.keys()? == first, "{first:x?}, then {:x?}", lio.keys()?);

        // It wakes up.
        nodes.node(2).signal("lockd", "CONT")?;
        nodes.node(2).signal("csvfs", "CONT")?;
        let said = nodes.node(2).run(&Nodes::write("disk", 'E'))?;
        ensure!(said.code != 0, "an application on it is told nothing: {said:?}");
        // Its lockd does not let the host in again while the old mount is there.
        ensure!(lio.keys()? == first, "{first:x?}, then {:x?}", lio.keys()?);
        let direct = nodes
            .node(2)
            .run("head -c 4096 /dev/zero | tr '\\0' E | dd of=/dev/sda bs=4096 seek=254 oflag=direct")?;
        ensure!(direct.code != 0, "the host itself can write: {direct:?}");
        nodes.unmount(2)?;

        // The drill, where it is not mounted.
        let said = nodes.node(2).sh(&Nodes::csvfs(2, "fence-test", "vms"))?;
        for word in ["refuses writes from who has not registered", "refuses UNMAP as well", "PROVED"] {
            ensure!(said.contains(word), "{word:?} is not in: {said}");
        }
        let here = nodes.node(1).run(&Nodes::csvfs(1, "fence-test", "vms"))?;
        ensure!(here.code != 0 && here.err.contains("is no live mount"), "{here:?}");
        nodes.holds(1, "disk", 'C')?;

        // A mount that is killed: its own host takes its key, when nothing of it is under way.
        nodes.node(1).signal("csvfs", "KILL")?;
        let freed =
            lab::wait::until("its key is gone", LIMIT, || lio.keys().ok().filter(|keys| are_of_nodes(keys)));
        ensure!(freed?.len() == 2, "each host's node keeps the reservation");
        nodes.node(1).sh("umount -l /mnt")?;
        nodes.mount(1)?;
        nodes.holds(1, "disk", 'C')?;
        nodes.node(1).sh(&Nodes::write("other", 'D'))?;
        nodes.unmount(1)?;
        let keys = lio.keys()?;
        ensure!(keys.len() == 2 && are_of_nodes(&keys), "{keys:x?}");
        let found = (blocks_of(&disk, 'C')?, blocks_of(&disk, 'D')?, blocks_of(&disk, 'E')?);
        ensure!(found == (16, 16, 0), "the LUN holds {found:?} blocks");
        Ok(())
    })
}
