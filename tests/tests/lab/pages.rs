//! Pages of a file that several nodes use: mappings, programs that need them, and what is refused.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::programs;
use lab::wait::until;

use super::volume::{lockctl, lockctl_done, text, with_three_mounts};

/// A mapping of the first bytes of a file.
struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(file: &File, len: usize, protection: i32, flags: i32) -> std::io::Result<Self> {
        // SAFETY: the kernel chooses a fresh address, and the descriptor is open.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), len })
    }

    fn shared(file: &File, len: usize) -> std::io::Result<Self> {
        Self::new(file, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }

    fn get(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        assert!(range.end <= self.len);
        // SAFETY: within the mapping, which lives as long as this.
        range.map(|at| unsafe { self.start.add(at).read_volatile() }).collect()
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        for (offset, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping, which is writable and lives as long as this.
            unsafe { self.start.add(at + offset).write_volatile(*byte) };
        }
    }

    fn sync(&self) -> Result<()> {
        // SAFETY: the range is that of the mapping.
        let status = unsafe { libc::msync(self.start.cast(), self.len, libc::MS_SYNC) };
        ensure!(status == 0, "msync: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is that of the mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

fn open_both(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

fn read_at(path: &Path, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    File::open(path)?.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

#[test]
fn a_shared_mapping_and_the_writes_of_other_nodes_see_each_other() -> Result<()> {
    with_three_mounts(|cluster| {
        let path = |number: u8| cluster.node(number).mount_point().join("mapped");
        fs::write(path(1), vec![b'.'; 16384])?;
        // The first node serves what nobody owns; on the second, opening for both makes it the owner.
        for (server, other) in [(1, 2), (2, 3), (3, 1)] {
            let file = until("the file to be closed everywhere", Duration::from_secs(20), || {
                let file = open_both(&path(server)).ok()?;
                Mapping::shared(&file, 16384).ok().map(|mapping| (file, mapping))
            });
            let (file, mapping) = file.with_context(|| format!("mapped on n{server}"))?;
            let elsewhere = open_both(&path(other))?;
            let refused = Mapping::shared(&elsewhere, 16384).err().context("it cannot be mapped there")?;
            ensure!(refused.raw_os_error() == Some(libc::ENODEV), "{refused}");
            let private = Mapping::new(&elsewhere, 16384, libc::PROT_READ, libc::MAP_PRIVATE)?;
            for round in 0..50_u8 {
                let at = usize::from(round) * 300;
                // Stored in a page, not yet written back, while the other node writes to the same page.
                mapping.put(at, &[b'a' + round % 26; 100]);
                elsewhere.write_all_at(&[b'A' + round % 26; 100], at as u64 + 100)?;
                ensure!(
                    mapping.get(at + 100..at + 200) == [b'A' + round % 26; 100],
                    "n{server}, round {round}"
                );
                let mut both = [0; 200];
                file.read_exact_at(&mut both, at as u64)?;
                ensure!(both[..100] == [b'a' + round % 26; 100] && both[100..] == [b'A' + round % 26; 100]);
                mapping.put(at + 200, b"!");
                mapping.sync()?;
                ensure!(read_at(&path(other), at as u64 + 200, 1)? == b"!", "what was synced on n{server}");
                elsewhere.read_exact_at(&mut both, at as u64)?;
                ensure!(both[..100] == [b'a' + round % 26; 100], "a store on n{server} is lost");
            }
            drop(private);
            let fresh = Mapping::new(&elsewhere, 16384, libc::PROT_READ, libc::MAP_PRIVATE)?;
            ensure!(fresh.get(0..100) == [b'a'; 100], "a new private mapping sees what was written before");
            // Cut off on the other node: the pages are gone, and come back as zeros.
            elsewhere.set_len(6000)?;
            ensure!(file.metadata()?.len() == 6000);
            elsewhere.set_len(16384)?;
            ensure!(mapping.get(6000..8192) == [0; 2192], "n{server} still sees what n{other} has cut off");
            mapping.put(8192, b"stored behind the cut");
            drop((mapping, file));
            ensure!(read_at(&path(other), 8192, 6)? == b"stored");
        }
        Ok(())
    })
}

#[test]
fn a_file_that_may_be_mapped_is_not_transferred_and_the_refusal_names_the_process() -> Result<()> {
    with_three_mounts(|cluster| {
        let path = |number: u8| cluster.node(number).mount_point().join("stays");
        fs::write(path(1), b"x")?;
        let file = open_both(&path(2))?;
        let mapping = Mapping::shared(&file, 1)?;
        let third = path(3);
        let acquire = ["acquire", text(&third)?, "--node", "n3"];
        let refused = lockctl(cluster, "n3", &acquire)?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        let me = fs::read_to_string("/proc/self/comm")?;
        let named = format!("process {} ({})", std::process::id(), me.trim_end());
        ensure!(!refused.status.success() && said.contains(&named), "{said}");
        drop((mapping, file));
        // RELEASE comes a little after close(2).
        until("the file to be let go", Duration::from_secs(20), || {
            lockctl_done(cluster, "n3", &acquire).ok()
        })?;
        let direct = OpenOptions::new().append(true).open(path(3))?;
        lockctl_done(cluster, "n3", &["release", text(&path(3))?])?;
        drop(direct);
        Ok(())
    })
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn programs_are_built_on_one_node_run_on_another_and_built_again() -> Result<()> {
    with_three_mounts(|cluster| {
        let at = |number: u8, name: &str| cluster.node(number).mount_point().join(name);
        for (builder, runner) in [(1, 2), (2, 1), (3, 2)] {
            for version in 1..=3 {
                fs::write(at(builder, "part.c"), format!("int version(void) {{ return {version}; }}\n"))?;
                fs::write(
                    at(builder, "main.c"),
                    "int version(void);\nint main(void) { return version(); }\n",
                )?;
                let cc = |arguments: &[&str], inputs: &[&str], output: &str| {
                    let mut command = Command::new("gcc");
                    command.args(arguments).args(inputs.iter().map(|name| at(builder, name)));
                    run(command.arg("-o").arg(at(builder, output)))
                };
                cc(&["-c"], &["part.c"], "part.o")?;
                cc(&["-shared", "-fPIC"], &["part.c"], "libpart.so")?;
                cc(&[], &["main.c", "part.o"], "program")?;
                cc(&[], &["main.c", "libpart.so"], "with-library")?;
                for node in [runner, builder] {
                    let mut linked = Command::new(at(node, "with-library"));
                    linked.env("LD_LIBRARY_PATH", cluster.node(node).mount_point());
                    for command in [&mut Command::new(at(node, "program")), &mut linked] {
                        let status = command.status().with_context(|| format!("{command:?}"))?;
                        ensure!(status.code() == Some(version), "{command:?}: {status}, version {version}");
                    }
                }
                // Rewritten in place, where it is not running.
                let other = fs::read(at(builder, "program"))?;
                fs::write(at(runner, "copy"), &other)?;
                fs::set_permissions(at(runner, "copy"), fs::Permissions::from_mode(0o755))?;
                ensure!(Command::new(at(builder, "copy")).status()?.code() == Some(version));
            }
        }
        Ok(())
    })
}

#[test]
fn a_database_with_mapped_pages_and_a_repository_work_on_every_node() -> Result<()> {
    with_three_mounts(|cluster| {
        let at = |number: u8, name: &str| cluster.node(number).mount_point().join(name);
        let sqlite = programs::installed("sqlite3")?;
        for journal in ["wal", "delete"] {
            let name = format!("{journal}.db");
            for round in 0..3_u8 {
                let node = round + 1;
                // Every file of the database is closed on the last node before the next uses it.
                let statements = format!(
                    "pragma journal_mode={journal}; pragma mmap_size=16777216; \
                     create table if not exists t (a integer primary key, b blob); \
                     insert into t (b) select randomblob(1000) from generate_series(1, 500); \
                     update t set b = randomblob(900) where a % 3 = {round}; \
                     pragma integrity_check; select count(*) from t;"
                );
                let mut command = Command::new(&sqlite);
                let said = run(command.arg(at(node, &name)).arg(statements))?;
                let count = (u32::from(round) + 1) * 500;
                ensure!(said.contains("ok") && said.contains(&count.to_string()), "n{node}: {said}");
            }
        }
        let git = |node: u8, arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(at(node, "repository"));
            command.args([
                "-c",
                "user.name=lab",
                "-c",
                "user.email=lab@example.org",
                "-c",
                "safe.directory=*",
            ]);
            run(command.args(arguments))
        };
        fs::create_dir(at(1, "repository"))?;
        git(1, &["init", "-q"])?;
        for round in 0..3_u8 {
            let node = round + 1;
            for file in 0..10 {
                let content = format!("round {round} of file {file}\n").repeat(200);
                fs::write(at(node, &format!("repository/file{file}")), content)?;
            }
            git(node, &["add", "."])?;
            git(node, &["commit", "-q", "-m", "round"])?;
            git(node, &["gc", "-q"])?;
            let next = node % 3 + 1;
            git(next, &["fsck", "--strict"])?;
            ensure!(git(next, &["status", "--porcelain"])?.is_empty());
            ensure!(git(next, &["log", "--oneline"])?.lines().count() == usize::from(node));
        }
        Ok(())
    })
}
