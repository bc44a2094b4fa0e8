//! Figures, printed by `cargo test --release -p csvfs --lib measure -- --ignored --nocapture`.

use std::time::Instant;

use redirector::lun::Proof;

use super::*;
use crate::disk::space::MetadataSpace;
use crate::types::{BLOCK, LunBlock, Run};

const INODES: TableDefinition<u64, &[u8]> = TableDefinition::new("inodes");
const NAMES: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("names");

fn fill(volume: &OpenVolume, files: u64) {
    let mut next = 512;
    for group in 0..files / 10_000 {
        let wanted = volume.area.wanted();
        volume.area.offer(&[Run { start: LunBlock(next * MIB / BLOCK), len: wanted * MIB / BLOCK }]).unwrap();
        next += wanted;
        let mut transaction = volume.database.begin_write().unwrap();
        transaction.set_quick_repair(true);
        {
            let mut inodes = transaction.open_table(INODES).unwrap();
            let mut names = transaction.open_table(NAMES).unwrap();
            for file in group * 10_000..(group + 1) * 10_000 {
                inodes.insert(file, &[3; 110][..]).unwrap();
                let hash = file.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                names.insert((file / 1000, hash), &[4; 30][..]).unwrap();
            }
        }
        transaction.commit().unwrap();
    }
}

#[test]
#[ignore = "takes long; prints figures"]
fn measure_opening_after_a_crash() {
    let (lun, clock) = (BenchLun::new(4096 * MIB), BenchClock::new());
    lun.record_no_more();
    make(&lun, &clock).unwrap();
    let wire = lun.wire();
    let volume = open_as(&wire, 1, &clock).unwrap();
    let started = Instant::now();
    fill(&volume, 1_000_000);
    println!(
        "1,000,000 files in {:.1} s, {} MiB",
        started.elapsed().as_secs_f64(),
        volume.area.occupied() / MIB
    );
    wire.cut();
    drop(volume);
    let wire = lun.wire();
    let volume = open_as(&wire, 2, &clock).unwrap();
    println!("{}", volume.opened);
    wire.cut();
    drop(volume);
    lun.prove_alone(Proof::Ended("for this test".to_owned()));
    let started = Instant::now();
    let volume = open_as(&lun.wire(), 3, &clock).unwrap();
    println!("{} in {:.3} s", volume.opened, started.elapsed().as_secs_f64());
}
