//! The lab itself: machines boot, run scripts, see each other, and lose their power.

use anyhow::{Result, ensure};
use lab::cluster::Network;
use lab::vmlab::{File, Machine, Plan, VmLab};

#[test]
fn machines_run_scripts_see_each_other_and_lose_their_power() -> Result<()> {
    VmLab::run(|lab| {
        let mut plan = Plan::new("n1", 1);
        let disk = lab.disk("disk.img", 16 << 20)?;
        plan.disks.push(disk.clone());
        plan.files.push(File::new("/etc/lab/greeting", "hello\n"));
        let first = Machine::start(lab, plan)?;
        let second = Machine::start(lab, Plan::new("n2", 2))?;
        first.up()?;
        second.up()?;

        ensure!(first.sh("cat /etc/lab/greeting; hostname")? == "hello\nn1\n");
        let said = first.run("echo out; echo err >&2; exit 3")?;
        ensure!((said.code, said.out.as_str(), said.err.as_str()) == (3, "out\n", "err\n"), "{said:?}");
        first.sh("csvfs --version && lockd --version && lockctl --version")?;

        let ping = |address: &str| format!("ping -c 1 -W 2 {address}");
        for address in ["10.77.0.2", "10.78.0.2"] {
            first.wait("it answers", &ping(address))?;
        }
        second.plug(Network::Lan, false)?;
        ensure!(first.run(&ping("10.77.0.2"))?.code != 0, "a cable that was pulled out");
        first.sh(&ping("10.78.0.2"))?;
        second.plug(Network::Lan, true)?;
        first.wait("it answers again", &ping("10.77.0.2"))?;

        // What a disk has acknowledged outlives the power.
        first.sh("echo kept | dd of=/dev/vda bs=512 count=1 conv=sync,fsync")?;
        first.power_off();
        ensure!(first.run("true").is_err() && !first.is_on(), "it has no power");
        ensure!(std::fs::read(&disk)?.starts_with(b"kept\n"), "the disk has forgotten");
        Ok(())
    })
}
