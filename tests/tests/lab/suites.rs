//! The programs of `tests/outside.rs` on the mounts of a cluster: on the coordinator's node, and on another.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::suites;
use tempfile::TempDir;

use crate::volume::with_three_mounts;

/// The coordinator's node, and another.
const NODES: [u8; 2] = [1, 2];

/// Runs `work` in a folder of each node's mount, one after the other; with `CSV_SOAK` also on both at once. Then the third
/// node sees the same folders as they do, and fsck finds nothing.
fn on_two_nodes(work: impl Fn(u8, &Path, &Path) -> Result<()> + Sync) -> Result<()> {
    let scratch = TempDir::new()?;
    with_three_mounts(|cluster| {
        let on = |number: u8, name: &str| -> Result<()> {
            let (folder, beside) = (cluster.path(number, name), scratch.path().join(name));
            std::fs::create_dir(&folder)?;
            std::fs::create_dir(&beside)?;
            work(number, &folder, &beside).with_context(|| format!("on n{number}"))
        };
        for number in NODES {
            on(number, &format!("alone{number}"))?;
        }
        if suites::is_soak() {
            std::thread::scope(|scope| {
                let both = NODES.map(|number| scope.spawn(move || on(number, &format!("both{number}"))));
                both.into_iter().try_for_each(|one| one.join().expect("a suite does not panic"))
            })?;
        }
        let listed = |number: u8| -> Result<Vec<String>> {
            let mut all = Vec::new();
            for top in std::fs::read_dir(cluster.node(number).mount_point())? {
                for entry in std::fs::read_dir(top?.path())? {
                    let entry = entry?;
                    all.push(format!("{:?} {} bytes", entry.file_name(), entry.metadata()?.len()));
                }
            }
            all.sort();
            Ok(all)
        };
        let here = listed(1)?;
        ensure!(here == listed(2)? && here == listed(3)?, "the nodes do not see the same files: {here:?}");
        Ok(())
    })
}

#[test]
fn pjdfstest_passes_on_the_coordinators_node_and_on_another() -> Result<()> {
    on_two_nodes(|_, folder, scratch| suites::pjdfstest(folder, scratch))
}

#[test]
fn fsx_finds_no_difference_on_the_coordinators_node_and_on_another() -> Result<()> {
    let operations = if suites::is_soak() { 100_000 } else { 20_000 };
    on_two_nodes(|number, folder, scratch| suites::fsx(folder, scratch, operations, 10 + u32::from(number)))
}

#[test]
fn fio_verifies_on_the_coordinators_node_and_on_another() -> Result<()> {
    let mebibytes = if suites::is_soak() { 64 } else { 16 };
    on_two_nodes(|_, folder, scratch| suites::fio_verify(folder, scratch, mebibytes))
}

#[test]
fn stress_ng_finds_no_fault_on_the_coordinators_node_and_on_another() -> Result<()> {
    let seconds = if suites::is_soak() { 5 } else { 1 };
    on_two_nodes(|_, folder, scratch| suites::stress_ng(folder, scratch, seconds))
}

#[test]
fn qemu_img_uses_an_image_on_the_coordinators_node_and_on_another() -> Result<()> {
    on_two_nodes(|_, folder, scratch| suites::qemu_img(folder, scratch))
}
