//! QEMU's own lock of its image: a machine that runs on one node does not start on another.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::suites::{Machine, boot_image};
use tempfile::TempDir;

use crate::volume::with_three_mounts;

/// How long QEMU may take to end.
const END: Duration = Duration::from_secs(20);

#[test]
fn qemu_does_not_start_on_a_second_node_while_its_image_is_in_use() -> Result<()> {
    let scratch = TempDir::new()?;
    with_three_mounts(|cluster| {
        std::fs::write(cluster.path(1, "disk.raw"), boot_image(4 << 20))?;
        let start = |number: u8| {
            let host = format!("n{number}");
            let command = |program: &Path| cluster.exec(&host, program);
            Machine::start(&host, command, &cluster.path(number, "disk.raw"), scratch.path())
        };
        let refused = |number: u8| -> Result<()> {
            let mut machine = start(number)?;
            ensure!(!machine.boots()?, "it runs on n{number} as well");
            let status = machine.process().end(END)?;
            let said = machine.process().errors();
            ensure!(!status.success() && said.contains("Failed to get \"write\" lock"), "{status}: {said}");
            Ok(())
        };
        let mut first = start(1)?;
        ensure!(first.boots()?, "on n1: {}", first.process().errors());
        refused(2)?;
        refused(3)?;
        first.process().signal(libc::SIGTERM);
        ensure!(first.process().end(END)?.success(), "{}", first.process().errors());

        let mut second = start(2)?;
        ensure!(second.boots()?, "on n2: {}", second.process().errors());
        refused(1)?;
        // One that is killed unlocks nothing by itself: the kernel closes its image.
        second.process().kill();
        let mut third = start(1)?;
        ensure!(third.boots()?, "on n1 again: {}", third.process().errors());
        third.process().signal(libc::SIGTERM);
        third.process().end(END)?;
        Ok(())
    })
}
