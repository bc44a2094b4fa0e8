//! One machine: QEMU, its disks, its networks, and the line to its agent.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::channel::{Channel, Said};
use super::image::{self, File};
use super::{VmLab, guest};
use crate::cluster::Network;
use crate::process::Running;
use crate::programs;
use crate::wait::until;

/// How long a machine may take to boot on a busy host.
const BOOT: Duration = Duration::from_secs(90);
/// How long a script may take unless it is said.
const SCRIPT: Duration = Duration::from_secs(60);

/// What a machine is to be like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The last byte of its addresses.
    pub number: u8,
    /// Megabytes of memory.
    pub memory_mb: u32,
    /// Images that are its disks `/dev/vda`, `/dev/vdb`, ...
    pub disks: Vec<PathBuf>,
    /// What its file system has besides.
    pub files: Vec<File>,
}

impl Plan {
    /// A machine without disks.
    #[must_use]
    pub fn new(name: &str, number: u8) -> Self {
        Self { name: name.to_owned(), number, memory_mb: 384, disks: Vec::new(), files: Vec::new() }
    }
}

/// A machine; its power fails when it is dropped.
#[derive(Debug)]
pub struct Machine {
    plan: Plan,
    qemu: Mutex<Running>,
    channel: Channel,
    control: PathBuf,
    has_booted: AtomicBool,
}

impl Machine {
    /// Switches a machine on. It boots meanwhile; what is asked of it waits.
    pub fn start(lab: &VmLab, plan: Plan) -> Result<Self> {
        let Plan { name, number, .. } = &plan;
        let initramfs = lab.path(&format!("{name}.cpio"));
        image::write(&initramfs, &plan.files)?;
        let (line, control) = (lab.path(&format!("{name}.line")), lab.path(&format!("{name}.qmp")));
        let console = lab.path(&format!("{name}.console"));
        for socket in [&line, &control] {
            // Of an earlier machine of this name.
            let _ = std::fs::remove_file(socket);
        }
        let mut command = Command::new(programs::installed("qemu-system-x86_64")?);
        command
            .current_dir(lab.folder())
            .args(["-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", &plan.memory_mb.to_string(), "-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())])
            .arg("-kernel")
            .arg(image::unpacked()?.join("vmlinuz"))
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &format!("console=ttyS0 panic=-1 quiet loglevel=4 number={number}")])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=line,path={},server=on,wait=off", line.display())])
            .args(["-device", &format!("virtserialport,chardev=line,name={}", guest::PORT)]);
        for (at, disk) in plan.disks.iter().enumerate() {
            let drive = format!("file={},format=raw,if=none,id=disk{at},discard=unmap", disk.display());
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=disk{at}")]);
        }
        for (network, byte) in [(Network::Lan, "77"), (Network::San, "78")] {
            let (id, group) = (network.name(), lab.group(network));
            command.args(["-netdev", &format!("socket,id={id},mcast={group},localaddr=127.0.0.1")]);
            let card = format!("virtio-net-pci,netdev={id},romfile=,mac=52:54:00:52:{byte}:{number:02x}");
            command.args(["-device", &card]);
        }
        let qemu = Running::start(name, &mut command, lab.path(&format!("{name}.log")))?;
        let channel = Channel::connect(&line).with_context(|| format!("{name}: {}", qemu.errors()))?;
        Ok(Self { plan, qemu: Mutex::new(qemu), channel, control, has_booted: AtomicBool::new(false) })
    }

    /// Waits until it has booted.
    pub fn up(&self) -> Result<()> {
        self.run("true").map(drop)
    }

    /// The power is back: a machine with the same disks and files boots.
    pub fn power_on(&mut self, lab: &VmLab) -> Result<()> {
        self.power_off();
        *self = Self::start(lab, self.plan.clone())?;
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Runs a script of the shell on it.
    pub fn run(&self, script: &str) -> Result<Said> {
        self.run_within(script, SCRIPT)
    }

    /// The same, which may take so long, and until the machine has booted besides.
    pub fn run_within(&self, script: &str, limit: Duration) -> Result<Said> {
        let asking = || format!("on {}: {script}", self.plan.name);
        let boot = if self.has_booted.load(Ordering::Relaxed) { Duration::ZERO } else { BOOT };
        let said = self.channel.run(script, boot + limit).with_context(asking)?;
        self.has_booted.store(true, Ordering::Relaxed);
        Ok(said)
    }

    /// Runs a script, and demands that it succeeds; gives what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        let Said { code, out, err } = self.run(script)?;
        ensure!(code == 0, "on {}: exit code {code} of\n{script}\nIt said: {out}{err}", self.plan.name);
        Ok(out)
    }

    /// Starts a program that goes on, called `name` in what follows.
    pub fn launch(&self, name: &str, command: &str) -> Result<()> {
        self.sh(&format!("{command} >>/log/{name} 2>&1 </dev/null & echo $! >/run/{name}.pid")).map(drop)
    }

    /// Sends a signal to what was launched as `name`.
    pub fn signal(&self, name: &str, signal: &str) -> Result<()> {
        self.sh(&format!("kill -{signal} $(cat /run/{name}.pid)")).map(drop)
    }

    /// Asks what was launched as `name` to end, and waits until it has.
    pub fn stop(&self, name: &str) -> Result<()> {
        self.signal(name, "TERM")?;
        self.wait(&format!("{name} ends"), &format!("! kill -0 $(cat /run/{name}.pid) 2>/dev/null"))
    }

    /// What that has printed.
    pub fn log(&self, name: &str) -> Result<String> {
        self.sh(&format!("cat /log/{name}"))
    }

    /// Waits until a script succeeds.
    pub fn wait(&self, what: &str, script: &str) -> Result<()> {
        let repeated =
            format!("i=0; until {script}; do i=$((i+1)); [ $i -lt 250 ] || exit 99; sleep 0.1; done");
        let said = self.run_within(&repeated, BOOT)?;
        let logs = || self.run("tail -n 20 /log/*").map(|said| said.out).unwrap_or_default();
        ensure!(said.code == 0, "on {}: waited in vain until {what}: {}\n{}", self.name(), said.err, logs());
        Ok(())
    }

    /// Whether its power is on.
    pub fn is_on(&self) -> bool {
        self.qemu.lock().is_alive()
    }

    /// Waits until it has gone off by itself; gives after how long.
    pub fn goes_off(&self, limit: Duration) -> Result<Duration> {
        let since = Instant::now();
        self.qemu.lock().end(limit)?;
        Ok(since.elapsed())
    }

    /// Its power fails. What its disks have acknowledged is there.
    pub fn power_off(&self) {
        self.qemu.lock().kill();
    }

    /// Pulls its cable of a network out, or puts it back.
    pub fn plug(&self, network: Network, plugged: bool) -> Result<()> {
        let arguments = json!({"name": network.name(), "up": plugged});
        self.control("set_link", &arguments).map(drop)
    }

    /// Asks QEMU itself.
    fn control(&self, command: &str, arguments: &Value) -> Result<Value> {
        let mut line = UnixStream::connect(&self.control).context("QEMU's control socket")?;
        line.set_read_timeout(Some(SCRIPT))?;
        let mut answers = BufReader::new(line.try_clone()?).lines();
        let mut next = || -> Result<Value> {
            let text = answers.next().context("QEMU has closed its control socket")??;
            Ok(serde_json::from_str(&text)?)
        };
        next()?;
        for question in
            [json!({"execute": "qmp_capabilities"}), json!({"execute": command, "arguments": arguments})]
        {
            line.write_all(format!("{question}\n").as_bytes())?;
            let answer = until("QEMU answers", SCRIPT, || match next() {
                // Between answers come events.
                Ok(answer) if answer.get("event").is_some() => None,
                other => Some(other),
            })??;
            ensure!(answer.get("return").is_some(), "QEMU on {question}: {answer}");
        }
        Ok(Value::Null)
    }
}
