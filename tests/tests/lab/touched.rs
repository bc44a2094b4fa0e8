//! Who touches a file's blocks, as the target counts it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait::until;
use lab::{Cluster, content};

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

#[test]
fn only_the_owner_touches_a_files_blocks() -> Result<()> {
    with_three_mounts(|cluster| {
        content::fill(&cluster.path(1, "disk"), 1, BLOCKS)?;
        let image = cluster.target().image_url();
        let image = Path::new(image.strip_prefix("file:").context("the image is a file")?);
        let places = until("the file's blocks are on the LUN", Duration::from_secs(20), || {
            places(image, 1).ok().filter(|places| places.len() as u64 == BLOCKS)
        })?;
        let (start, length) = longest_run(&places);
        let client =
            |number: u8| -> Result<Option<u64>> { Ok(cluster.target().counters_of_node(number)?.client) };
        // On every node an application keeps it open for writing: so it does not move by itself.
        let open = |number: u8| File::options().write(true).open(cluster.path(number, "disk"));
        let _open = [open(1)?, open(2)?, open(3)?];
        let clients = [client(1)?, client(2)?, client(3)?];
        let only = |owner: u8| -> Result<()> {
            // A region belongs to the file if all of it does.
            let region = cluster.target().touched(clients[0], 0, 1)?.region_bytes;
            let (first, end) = (start.next_multiple_of(region), (start + length) / region * region);
            ensure!(end > first + 16 * region, "the file lies in pieces: {length} bytes from {start} on");
            cluster.target().forget_touched()?;
            use_everywhere(cluster, "disk")?;
            for (number, client) in (1..).zip(clients) {
                let touched = cluster.target().touched(client, first, end - first)?;
                let all = touched.read == touched.regions && touched.changed == touched.regions;
                let none = touched.read == 0 && touched.changed == 0;
                let right = if number == owner { all } else { none };
                ensure!(right, "n{owner} owns the file, and n{number} has touched {touched:?}");
            }
            Ok(())
        };
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
