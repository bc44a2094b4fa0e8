//! Who touches a file's blocks, as the target counts it.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cluster::Touched;
use lab::wait::until;
use lab::{Cluster, content};
use redirector::target::{Action, FaultSpec, Kind};
use serde_json::json;

use crate::volume::with_three_mounts;

/// Enough that whole regions of the target's record belong to the file.
const BLOCKS: u64 = 2048;
const BLOCK: u64 = content::BLOCK as u64;

/// Where the blocks of the file `seed` lie on the LUN: found by their contents in its image.
fn places(image: &Path, seed: u64) -> Result<BTreeMap<u64, u64>> {
    // The beginning of each block, which no two share.
    let heads: BTreeMap<Vec<u8>, u64> =
        (0..BLOCKS).map(|index| (content::block(seed, index, 0)[..16].to_vec(), index)).collect();
    let image = File::open(image)?;
    let (mut places, mut at, mut chunk) = (BTreeMap::new(), 0, vec![0; 1 << 20]);
    let end = image.metadata()?.len();
    while let Some(data) = next_data(&image, at, end)? {
        at = data;
        let count = image.read_at(&mut chunk, at)?;
        for (number, block) in (0..).zip(chunk[..count].chunks_exact(content::BLOCK)) {
            if let Some(index) = heads.get(&block[..16])
                && block == content::block(seed, *index, 0)
            {
                places.insert(*index, at + number * BLOCK);
            }
        }
        at += (count as u64).max(1);
    }
    Ok(places)
}

/// Where the next data of a sparse file begins, on a block's boundary.
fn next_data(file: &File, from: u64, end: u64) -> Result<Option<u64>> {
    use std::os::fd::AsRawFd;
    if from >= end {
        return Ok(None);
    }
    let offset = i64::try_from(from)?;
    // SAFETY: a plain system call on an open descriptor; reads give their offset themselves.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, libc::SEEK_DATA) };
    Ok(u64::try_from(found).ok().map(|found| found / BLOCK * BLOCK))
}

/// The longest run of blocks that lie one behind the other: where it begins on the LUN, and its length in bytes.
fn longest_run(places: &BTreeMap<u64, u64>) -> (u64, u64) {
    let mut best = (0, 0);
    let mut run: (u64, u64) = (0, 0);
    for place in places.values() {
        if run.0 + run.1 == *place {
            run.1 += BLOCK;
        } else {
            run = (*place, BLOCK);
        }
        if run.1 > best.1 {
            best = run;
        }
    }
    best
}

/// Reads and writes all over the file on every node, by system calls that go to the server each: past the kernel's pages,
/// for which a node would become the owner.
fn use_everywhere(cluster: &Cluster, name: &str) -> Result<()> {
    for number in 1..=3_u8 {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        let file = options.open(cluster.path(number, name))?;
        let mut block = vec![0; content::BLOCK];
        for index in 0..BLOCKS {
            if index % 3 == u64::from(number) - 1 {
                file.write_all_at(&content::block(1, index, 0), index * BLOCK)?;
            } else if index % 7 == 0 {
                file.read_exact_at(&mut block, index * BLOCK)?;
                ensure!(block == content::block(1, index, 0), "block {index} on n{number}");
            }
        }
        file.sync_all()?;
    }
    Ok(())
}

/// A file whose blocks have been found on the LUN, and the clients of the nodes.
struct Found<'a> {
    cluster: &'a Cluster,
    clients: [Option<u64>; 3],
    /// The regions of the target's record that belong to the file: from here, to here.
    regions: Range<u64>,
}

impl<'a> Found<'a> {
    /// The file `seed`, made on node 1.
    fn make(cluster: &'a Cluster, name: &str, seed: u64) -> Result<Self> {
        content::fill(&cluster.path(1, name), seed, BLOCKS)?;
        let image = cluster.target().image_url();
        let image = Path::new(image.strip_prefix("file:").context("the image is a file")?);
        let places = until("the file's blocks are on the LUN", Duration::from_secs(20), || {
            places(image, seed).ok().filter(|places| places.len() as u64 == BLOCKS)
        })?;
        let (start, length) = longest_run(&places);
        let client =
            |number: u8| -> Result<Option<u64>> { Ok(cluster.target().counters_of_node(number)?.client) };
        let clients = [client(1)?, client(2)?, client(3)?];
        let region = cluster.target().touched(clients[0], 0, 1)?.region_bytes;
        // A region belongs to the file if all of it does.
        let regions = start.next_multiple_of(region)..(start + length) / region * region;
        ensure!(
            regions.end > regions.start + 16 * region,
            "the file lies in pieces: {length} bytes from {start} on"
        );
        Ok(Self { cluster, clients, regions })
    }

    /// What a node's client has touched of the file since [`Target::forget_touched`](lab::cluster::Target).
    fn by(&self, number: u8) -> Result<Touched> {
        let client = self.clients[usize::from(number) - 1];
        self.cluster.target().touched(client, self.regions.start, self.regions.end - self.regions.start)
    }

    /// While `work` is done, only node `number` touches the file, and all of it.
    fn only(&self, number: u8, writes: bool, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.cluster.target().forget_touched()?;
        work()?;
        for other in 1..=3 {
            let touched = self.by(other)?;
            let changed = if writes { touched.regions } else { 0 };
            let all = touched.read == touched.regions && touched.changed == changed;
            let none = touched.read == 0 && touched.changed == 0;
            let right = if other == number { all } else { none };
            ensure!(right, "only n{number} is to touch the file, and n{other} has touched {touched:?}");
        }
        Ok(())
    }
}

#[test]
fn only_the_owner_touches_a_files_blocks() -> Result<()> {
    with_three_mounts(|cluster| {
        let found = Found::make(cluster, "disk", 1)?;
        // On every node an application keeps it open for writing: so it does not move by itself.
        let open = |number: u8| File::options().write(true).open(cluster.path(number, "disk"));
        let _open = [open(1)?, open(2)?, open(3)?];
        let only = |owner: u8| found.only(owner, true, || use_everywhere(cluster, "disk"));
        // Nobody's: the coordinator's node serves it.
        only(1)?;
        cluster.acquire(2, &["disk"])?;
        only(2)?;
        cluster.transfer(2, 3, &["disk"])?;
        only(3)?;
        cluster.transfer(3, 2, &["disk"])?;
        only(2)
    })
}

fn open_to_read(cluster: &Cluster, number: u8, name: &str) -> Result<File> {
    let mut options = File::options();
    Ok(options.read(true).custom_flags(libc::O_DIRECT).open(cluster.path(number, name))?)
}

/// Reads all of the file, and demands that it is what was made of `seed`.
fn read_all(file: &File, seed: u64) -> Result<()> {
    let mut bytes = vec![0; 64 * content::BLOCK];
    for first in (0..BLOCKS).step_by(64) {
        file.read_exact_at(&mut bytes, first * BLOCK)?;
        for (index, block) in (first..).zip(bytes.chunks_exact(content::BLOCK)) {
            ensure!(block == content::block(seed, index, 0), "block {index}");
        }
    }
    Ok(())
}

/// Of the coordinator's node, or of another, which serves the file while it is sealed and after.
fn a_sealed_file_is_read_directly(owner: u8) -> Result<()> {
    with_three_mounts(|cluster| {
        let found = Found::make(cluster, "image", 1)?;
        let change = |number: u8, what: &str| {
            let (node, path) = (format!("n{number}"), cluster.path(number, "image").display().to_string());
            cluster.exec_ours(&node, "csvfs", &[what, &path]).map(drop)
        };
        if owner != 1 {
            cluster.acquire(owner, &["image"])?;
        }
        let early = open_to_read(cluster, 3, "image")?;
        found.only(owner, false, || read_all(&early, 1))?;
        drop(early);
        change(2, "seal")?;
        let open = |number: u8| open_to_read(cluster, number, "image");
        let files = [open(1)?, open(2)?, open(3)?];
        for (number, file) in (1..).zip(&files) {
            found.only(number, false, || read_all(file, 1)).context("sealed")?;
        }
        // V8: a read of each other node is on its way when the seal is taken off; it is waited for.
        let others: Vec<u8> = (1..=3).filter(|number| *number != owner).collect();
        let of_reads = |number: &u8| {
            let client = found.clients[usize::from(*number) - 1];
            let reads = FaultSpec::new(Action::Hang).on(Kind::Read).within(found.regions.clone());
            cluster.target().fault(&FaultSpec { client, ..reads.times(1) })
        };
        let faults = others.iter().map(of_reads).collect::<Result<Vec<_>>>()?;
        std::thread::scope(|scope| -> Result<()> {
            let readers: Vec<_> = others
                .iter()
                .map(|number| {
                    let file = &files[usize::from(*number) - 1];
                    scope.spawn(move || read_all(file, 1))
                })
                .collect();
            let held = until("a read of each is at the target", Duration::from_secs(10), || {
                let all = cluster.target().control(&json!({"op": "faults"})).ok()?;
                let all = all["faults"].as_array()?;
                all.iter().all(|fault| fault["held"].as_u64() > Some(0)).then_some(())
            });
            let unsealing = scope.spawn(|| change(3, "unseal"));
            // Those who are told return it when their reads have ended, and not before.
            let early =
                until("it is unsealed", Duration::from_secs(1), || unsealing.is_finished().then_some(()));
            for fault in faults {
                cluster.target().clear_fault(fault)?;
            }
            unsealing.join().expect("no panic")?;
            held?;
            ensure!(early.is_err(), "it was unsealed while nodes were reading past its server");
            // The readers are still at it: whatever they read from now on they read through the server.
            cluster.target().forget_touched()?;
            readers.into_iter().try_for_each(|reader| reader.join().expect("no panic"))?;
            for number in &others {
                let touched = found.by(*number)?;
                ensure!(touched.read == 0, "n{number} has read the file after it was unsealed: {touched:?}");
            }
            Ok(())
        })?;
        for file in &files {
            found.only(owner, false, || read_all(file, 1)).context("unsealed")?;
        }
        // And it changes under those who had its layout.
        let writer = File::options().write(true).open(cluster.path(3, "image"))?;
        writer.write_all_at(&content::block(2, 0, 0), 0)?;
        let mut block = vec![0; content::BLOCK];
        for file in &files {
            file.read_exact_at(&mut block, 0)?;
            ensure!(block == content::block(2, 0, 0));
        }
        Ok(())
    })
}

#[test]
fn v8_every_node_reads_a_sealed_file_itself_until_it_is_unsealed() -> Result<()> {
    a_sealed_file_is_read_directly(1)
}

#[test]
fn v8_every_node_reads_a_sealed_file_of_an_owner_itself_until_it_is_unsealed() -> Result<()> {
    a_sealed_file_is_read_directly(2)
}
