//! Everything that a volume does to a LUN, for every kind of server.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use redirector::lun::{Lun, Outcome};

use super::{Place, end, options, start_flush, start_read, start_trim, start_write, start_zero, try_open};

/// The size of the LUN.
pub const SIZE: u64 = 16 << 20;

/// Everything that a volume does to a LUN, beside a copy in memory.
pub fn exercise(place: &Place, uri: &str, seed: u64) {
    let lun = try_open(uri, &options()).unwrap_or_else(|error| panic!("{uri}: {error}"));
    let geometry = lun.geometry();
    assert_eq!(geometry.size, SIZE, "{uri}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut model = vec![0u8; usize::try_from(SIZE).unwrap()];
    check(place, &*lun, &model, uri);
    for _ in 0..30 {
        // Many at once, none overlapping: one for each of 64 parts.
        let part = SIZE / 64;
        let mut ends = Vec::new();
        for i in 0..64 {
            let start = i * part + random.random_range(0..part / 2) / 4096 * 4096;
            let len = random.random_range(1..=part / 2) / 4096 * 4096;
            let range = usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
            match random.random_range(0..8) {
                0 => {
                    ends.push(start_zero(&*lun, start..start + len));
                    model[range].fill(0);
                }
                1 => {
                    // What is trimmed reads as anything; written again at once.
                    assert_eq!(end(&start_trim(&*lun, start..start + len)), Outcome::Done, "{uri}");
                    let data = place.filled(0x5a, range.len());
                    ends.push(start_write(&*lun, start, data, false));
                    model[range].fill(0x5a);
                }
                _ => {
                    let mut data = place.pool.take(range.len());
                    random.fill_bytes(&mut data);
                    model[range].copy_from_slice(&data);
                    ends.push(start_write(&*lun, start, data, random.random_bool(0.3)));
                }
            }
        }
        for ended in &ends {
            assert_eq!(end(ended), Outcome::Done, "{uri}");
        }
        assert_eq!(end(&start_flush(&*lun)), Outcome::Done, "{uri}");
    }
    check(place, &*lun, &model, uri);
    assert!(lun.ghosts().is_empty());
    drop(lun);
    let again = try_open(uri, &options()).unwrap();
    check(place, &*again, &model, uri);
}

fn check(place: &Place, lun: &dyn Lun, model: &[u8], uri: &str) {
    let lens = [4096, 65536, 1 << 20, 200 * 1024];
    let mut at = 0;
    let mut reads = Vec::new();
    for len in lens.iter().cycle() {
        let len = (*len).min(model.len() - at);
        if len == 0 {
            break;
        }
        reads.push((at, start_read(lun, at as u64, place.pool.take(len))));
        at += len;
    }
    for (at, read) in &reads {
        let (outcome, buffer) = end(read);
        assert_eq!(outcome, Outcome::Done, "{uri}");
        assert!(buffer[..] == model[*at..at + buffer.len()], "{uri}: wrong data at {at}");
    }
}
