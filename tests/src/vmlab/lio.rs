//! A machine as an iSCSI target: LIO, the kernel's own, whose persistent reservations are complete.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::Machine;
use crate::cluster::{Network, TARGET};

/// The target's name; its unit is 0.
pub const TARGET_NAME: &str = "iqn.2026-01.lab:vms";
/// The names of the initiators, by their hosts' numbers from 1 on. Of each are let in, besides, the names of its roles, as
/// `roles=named` makes them.
pub const INITIATORS: [&str; 3] = ["iqn.2026-01.lab:n1", "iqn.2026-01.lab:n2", "iqn.2026-01.lab:n3"];

const SERIAL: &str = "csvlab0001";
const MODULES: [&str; 5] =
    ["crc32c_generic", "crct10dif_generic", "target_core_iblock", "iscsi_target_mod", "iscsi_tcp"];

fn address() -> Ipv4Addr {
    Network::San.address(TARGET)
}

/// The target on a machine: it serves `/dev/vda`.
#[derive(Debug)]
pub struct Lio<'a>(&'a Machine);

impl<'a> Lio<'a> {
    /// The target on `machine`, whose modules are loaded. It does not serve yet.
    pub fn on(machine: &'a Machine) -> Result<Self> {
        let load: Vec<_> = MODULES.iter().map(|module| format!("modprobe {module}")).collect();
        machine.sh(&format!(
            "mkdir -p /etc/target/pr /etc/target/alua && {} && \
             {{ grep -q configfs /proc/mounts || mount -t configfs configfs /sys/kernel/config; }}",
            load.join(" && ")
        ))?;
        Ok(Self(machine))
    }

    /// The URL of its unit, by which each role has a name of its own: LIO does not tell apart the sessions of one.
    #[must_use]
    pub fn url() -> String {
        format!("iscsi://{}/{TARGET_NAME}/0?roles=named", address())
    }

    /// The script by which the kernel of a host logs in, as `initiator`: a disk appears.
    #[must_use]
    pub fn log_in(initiator: &str) -> String {
        format!(
            "modprobe -a crc32c_generic iscsi_tcp sd_mod && iscsistart -i {initiator} -t {TARGET_NAME} -g 1 -a {} -p 3260",
            address()
        )
    }

    /// Serves. What is written in `/etc/target/pr`, where the kernel keeps registrations that are to outlive a restart
    /// (APTPL) and does not read them by itself, is given back to it first, as `targetctl restore` does.
    pub fn serve(&self) -> Result<()> {
        let acls: Vec<_> = INITIATORS
            .iter()
            .flat_map(|name| ["", ":node", ":drill"].map(|role| format!("{name}{role}")))
            .map(|name| {
                format!("mkdir -p $P/acls/{name}/lun_0 && ln -s $P/lun/lun_0 $P/acls/{name}/lun_0/l0 && ")
            })
            .collect();
        self.0.sh(&format!(
            "T=/sys/kernel/config/target B=$T/core/iblock_0/d0 P=$T/iscsi/{TARGET_NAME}/tpgt_1
             set -e
             mkdir -p $B && echo udev_path=/dev/vda >$B/control
             echo {SERIAL} >$B/wwn/vpd_unit_serial
             echo 1 >$B/enable
             echo 1 >$B/attrib/emulate_tpu; echo 1 >$B/attrib/emulate_tpws
             if [ -e /etc/target/pr/aptpl_{SERIAL} ]; then
                 sed -n '/PR_REG_START/,/PR_REG_END/p' /etc/target/pr/aptpl_{SERIAL} >/tmp/aptpl
                 while read -r line; do case $line in
                     PR_REG_START*) all= ;;
                     PR_REG_END*) echo \"$all\" >$B/pr/res_aptpl_metadata ;;
                     *) all=$all${{all:+,}}$line ;;
                 esac; done </tmp/aptpl
             fi
             mkdir -p $T/iscsi $P/lun/lun_0 && ln -s $B $P/lun/lun_0/d0
             echo 0 >$P/attrib/authentication; echo 0 >$P/attrib/generate_node_acls
             echo 0 >$P/attrib/demo_mode_write_protect
             {}true
             mkdir -p $P/np/{}:3260
             echo 1 >$P/enable",
            acls.concat(),
            address(),
        ))?;
        Ok(())
    }

    /// Ends, and forgets everything that is not in `/etc/target/pr`: sessions, registrations, the reservation.
    pub fn end(&self) -> Result<()> {
        self.0.sh(&format!(
            "T=/sys/kernel/config/target B=$T/core/iblock_0/d0 P=$T/iscsi/{TARGET_NAME}/tpgt_1
             set -e
             echo 0 >$P/enable
             rmdir $P/np/*
             for acl in $P/acls/*; do rm $acl/lun_0/l0; rmdir $acl/lun_0 $acl; done
             rm $P/lun/lun_0/d0; rmdir $P/lun/lun_0 $P $T/iscsi/{TARGET_NAME} $B"
        ))?;
        Ok(())
    }

    /// The keys that are registered, as the target tells them, sorted: `0x...`.
    pub fn keys(&self) -> Result<Vec<u64>> {
        let text = self.pr("res_pr_registered_i_pts")?;
        let key = |line: &str| {
            let (_, key) = line.rsplit_once("Key: 0x")?;
            u64::from_str_radix(key.split_whitespace().next()?, 16).ok()
        };
        let mut keys: Vec<_> = text.lines().filter_map(key).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// What kind of reservation there is, in the target's words.
    pub fn kind(&self) -> Result<String> {
        Ok(self.pr("res_pr_type")?.trim().to_owned())
    }

    fn pr(&self, name: &str) -> Result<String> {
        let text = self.0.sh(&format!("cat /sys/kernel/config/target/core/iblock_0/d0/pr/{name}"))?;
        ensure!(!text.is_empty(), "the target says nothing in {name}");
        Ok(text)
    }
}
