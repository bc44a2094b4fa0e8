//! tgt, Debian's iSCSI target in user space: a process of its own for each test, on a port of loopback.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use super::{Server, wait_for};

/// The name of the target; its unit 1 is the image.
pub const TARGET: &str = "iqn.2026-01.lab:vms";

/// A target with one unit.
#[derive(Debug)]
pub struct Tgt {
    pub server: Server,
    pub port: u16,
    /// The target's number, which its unit's device identification is made of.
    number: &'static str,
}

impl Tgt {
    /// Serves `image` on `port` with `parameters` of tgtadm for its unit.
    pub fn start(port: u16, image: &Path, parameters: &[&str]) -> Self {
        Self::numbered("1", port, image, parameters)
    }

    /// The same with another number.
    pub fn numbered(number: &'static str, port: u16, image: &Path, parameters: &[&str]) -> Self {
        let control = (port % 32000).to_string();
        let portal = format!("portal=127.0.0.1:{port}");
        let server = Server::start("tgtd", &["-f", "-C", &control, "--iscsi", &portal], || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let tgt = Self { server, port, number };
        // It listens before its control socket is there.
        wait_for("tgtd to be asked", || tgt.try_admin(&["--op", "show", "--mode", "target"]));
        tgt.admin(&["--op", "new", "--mode", "target", "--tid", number, "-T", TARGET]);
        let image = image.to_str().unwrap();
        let unit = ["--op", "new", "--mode", "logicalunit", "--tid", number, "--lun", "1", "-b", image];
        tgt.admin(&[&unit[..], parameters].concat());
        tgt.update("thin_provisioning=1");
        tgt
    }

    /// The same, for everybody.
    pub fn open(port: u16, image: &Path) -> Self {
        let tgt = Self::start(port, image, &[]);
        tgt.bind();
        tgt
    }

    /// Lets everybody in.
    pub fn bind(&self) {
        self.admin(&["--op", "bind", "--mode", "target", "--tid", self.number, "-I", "ALL"]);
    }

    /// Changes something of the unit.
    pub fn update(&self, parameter: &str) {
        let unit = ["--mode", "logicalunit", "--tid", self.number, "--lun", "1"];
        self.admin(&[&["--op", "update"], &unit[..], &["--params", parameter]].concat());
    }

    fn try_admin(&self, arguments: &[&str]) -> bool {
        let control = (self.port % 32000).to_string();
        let mut command = Command::new("tgtadm");
        let output = command.args(["-C", &control, "--lld", "iscsi"]).args(arguments).output().unwrap();
        output.status.success()
    }

    /// Has `tgtadm` do something.
    pub fn admin(&self, arguments: &[&str]) {
        assert!(self.try_admin(arguments), "tgtadm {arguments:?}");
    }

    /// How the unit is named.
    pub fn uri(&self) -> String {
        uri(self.port)
    }
}

/// How the unit of a target on `port` is named.
pub fn uri(port: u16) -> String {
    format!("iscsi://127.0.0.1:{port}/{TARGET}/1")
}
