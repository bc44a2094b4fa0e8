//! `scsi-pr` by `iscsi://` on LIO, whose persistent reservations are complete: PREEMPT AND ABORT, UNMAP and WRITE SAME that
//! are refused, registrations that outlive a restart.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::cluster::TARGET;
use lab::vmlab::{Lio, Machine, Nodes, Plan, VmLab};

pub const LUN_BYTES: u64 = 128 << 20;

/// How many blocks of 4 KiB of the image at `path` are full of a letter.
pub fn blocks_of(path: &Path, letter: char) -> Result<usize> {
    let image = std::fs::read(path).with_context(|| path.display().to_string())?;
    let letter = u8::try_from(letter)?;
    Ok(image.chunks(4096).filter(|block| block.iter().all(|byte| *byte == letter)).count())
}

#[test]
#[ignore = "not proven yet: its last step has never been reached"]
fn on_lio_who_is_fenced_writes_nothing_and_stays_out_when_the_target_restarts() -> Result<()> {
    VmLab::run(|lab| {
        let disk = lab.disk("lun.img", LUN_BYTES)?;
        let mut plan = Plan::new("san", TARGET);
        plan.disks.push(disk.clone());
        let san = Machine::start(lab, plan)?;
        let url = Lio::url();
        let volume = format!("lun = [\"{url}\"]\nfence = \"auto\"\ntarget_quiesce_s = 1.0");
        let nodes = Nodes::start(lab, 2, "lease_s = 6.0", &volume)?;
        let lio = Lio::on(&san)?;
        lio.serve()?;
        nodes.start_lockd()?;
        nodes.format()?;
        // `auto` takes reservations only from a target that does all of it.
        nodes.mount(1)?;
        nodes.mount(2)?;
        let status = nodes.node(1).sh("csvfs status --json")?;
        ensure!(status.contains("scsi-pr: the target rejects"), "{status}");
        ensure!(lio.kind()?.contains("Write Exclusive Access, All Registrants"), "{}", lio.kind()?);

        let said = nodes.node(1).sh(&Nodes::csvfs(1, "fence-test", "vms"))?;
        for word in [
            "has PREEMPT AND ABORT",
            "refuses UNMAP as well",
            "outlive its power",
            "1 keys preempted and aborted",
            "PROVED",
        ] {
            ensure!(said.contains(word), "{word:?} is not in: {said}");
        }

        // The second node owns a file, and hangs.
        nodes.node(1).sh(&Nodes::write("disk", 'A'))?;
        nodes.acquire(2, "disk")?;
        nodes.node(2).sh(&Nodes::write("disk", 'B'))?;
        let before = lio.keys()?;
        nodes.node(2).signal("csvfs", "STOP")?;
        nodes.node(2).signal("lockd", "STOP")?;
        nodes.node(1).sh(&Nodes::write("disk", 'C'))?;
        let log = nodes.node(1).log("lockd")?;
        ensure!(log.contains("1 keys preempted and aborted"), "{log}");
        let after = lio.keys()?;
        ensure!(after.iter().all(|key| before.contains(key)), "{before:x?}, then {after:x?}");
        ensure!(after.len() < before.len(), "{before:x?}, then {after:x?}");

        // The target restarts: it has what it was given back, and no more.
        lio.end()?;
        lio.serve()?;
        ensure!(lio.keys()? == after, "{after:x?}, then {:x?}", lio.keys()?);
        nodes.node(1).sh(&Nodes::write("other", 'D'))?;

        // The one that hung wakes up.
        nodes.node(2).signal("lockd", "CONT")?;
        nodes.node(2).signal("csvfs", "CONT")?;
        let said = nodes.node(2).run(&Nodes::write("disk", 'E'))?;
        ensure!(said.code != 0, "an application on it is told nothing: {said:?}");
        nodes.holds(1, "disk", 'C')?;
        nodes.holds(1, "other", 'D')?;
        nodes.unmount(1)?;
        let found = (blocks_of(&disk, 'C')?, blocks_of(&disk, 'D')?, blocks_of(&disk, 'E')?);
        ensure!(found == (16, 16, 0), "the LUN holds {found:?} blocks");
        Ok(())
    })
}
