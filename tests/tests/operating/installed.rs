//! `make install` into a folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::programs;
use tempfile::TempDir;

/// The programs that are installed.
pub const PROGRAMS: [&str; 4] = ["csvfs", "csv-target", "lockd", "lockctl"];

/// What `make install DESTDIR=...` made; gone with the value.
pub struct Installed {
    folder: TempDir,
    /// Where the programs will be.
    pub prefix: PathBuf,
}

impl Installed {
    /// Installs what this test was built with. The units name the programs where they are found in this folder.
    pub fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let built = programs::ours("csvfs")?.parent().context("folder")?.to_owned();
        for program in PROGRAMS {
            programs::ours(program)?;
        }
        let prefix = folder.path().join("usr");
        let output = Command::new("make")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .args(["--no-print-directory", "install"])
            .arg(format!("FROM={}", built.display()))
            .arg(format!("DESTDIR={}", folder.path().join("root").display()))
            .arg(format!("PREFIX={}", prefix.display()))
            .output()
            .context("running make")?;
        ensure!(output.status.success(), "make install: {}", String::from_utf8_lossy(&output.stderr));
        // What a package would put there.
        std::fs::rename(folder.path().join("root").join(prefix.strip_prefix("/")?), &prefix)?;
        Ok(Self { folder, prefix })
    }

    /// The folder that stands for `/`, without the prefix.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The folder of the units.
    pub fn units(&self) -> PathBuf {
        self.prefix.join("lib/systemd/system")
    }
}

#[test]
fn make_install_puts_programs_units_and_manual_in_place() -> Result<()> {
    let installed = Installed::new()?;
    for program in PROGRAMS {
        let path = installed.prefix.join("bin").join(program);
        let output = Command::new(&path).arg("--version").output().with_context(|| program.to_owned())?;
        ensure!(output.status.success(), "{program}: {output:?}");
    }
    let helper = std::fs::read_link(installed.root().join("sbin/mount.csvfs"))?;
    ensure!(helper == installed.prefix.join("bin/csvfs"), "{}", helper.display());
    let manual = installed.prefix.join("share/doc/csvfs/OPERATING.md");
    ensure!(manual.exists(), "the manual that the units name is not installed");
    ensure!(installed.root().join("etc/csvfs").is_dir());
    Ok(())
}
