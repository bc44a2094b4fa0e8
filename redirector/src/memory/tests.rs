//! Tests of the LUNs in memory.

use std::sync::mpsc;

use proptest::prelude::*;

use super::*;
use crate::blocking;
use crate::buffer::Pool;
use std::sync::Arc;

fn data(len: usize, byte: u8) -> Slice {
    let mut buffer = Pool::default().take(len);
    buffer.fill(byte);
    buffer.share()
}

fn read(lun: &dyn Lun, offset: u64, len: usize) -> Vec<u8> {
    blocking::read(lun, offset, Pool::default().take(len)).unwrap().to_vec()
}

#[test]
fn a_memory_lun_keeps_its_geometry() {
    let lun = MemoryLun::new(1 << 30);
    assert_eq!(blocking::write(&lun, 1, data(512, 1), false), Err(libc::EINVAL));
    assert_eq!(blocking::write(&lun, (1 << 30) - 512, data(1024, 1), false), Err(libc::EINVAL));
    assert_eq!(blocking::zero(&lun, 0..(1 << 30) + 512), Err(libc::EINVAL));
    assert!(blocking::write(&lun, (1 << 30) - 512, data(512, 1), false).is_ok());
    assert_eq!(read(&lun, (1 << 30) - 1024, 1024), [[0; 512], [1; 512]].concat());
    assert_eq!(lun.snapshot().page_count(), 1);
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let lun = MemoryLun::new(1 << 20);
    blocking::write(&lun, 4096, data(4096, 1), false).unwrap();
    let before = lun.snapshot();
    let fingerprint = before.fingerprint();
    blocking::write(&lun, 4096, data(512, 2), false).unwrap();
    assert_ne!(lun.snapshot().fingerprint(), fingerprint);
    assert_eq!(before.fingerprint(), fingerprint);
    lun.restore(before);
    assert_eq!(read(&lun, 4096, 4096), [1; 4096]);
    blocking::zero(&lun, 0..1 << 20).unwrap();
    assert_eq!(lun.snapshot().fingerprint(), Image::default().fingerprint(), "zeros are as good as nothing");
}

#[test]
fn faults_are_what_the_plan_says() {
    let memory = Arc::new(MemoryLun::new(1 << 20));
    let lun = FaultyLun::new(Arc::clone(&memory) as Arc<dyn Lun>);
    lun.plan(|asked| match asked.number {
        0 => Fault::Fail(libc::ENOSPC),
        1 => Fault::Lose,
        2 => Fault::LoseReply,
        _ => Fault::None,
    });
    assert_eq!(blocking::write(&lun, 0, data(512, 1), false), Err(libc::ENOSPC));
    assert!(lun.ghosts().is_empty(), "what failed is no ghost");
    let (sender, receiver) = mpsc::channel();
    for (offset, byte) in [(512, 2), (1024, 3)] {
        let sender = sender.clone();
        lun.write(offset, data(512, byte), false, Box::new(move |outcome| sender.send(outcome).unwrap()));
        assert_eq!(receiver.recv().unwrap(), Outcome::Unknown);
    }
    assert_eq!(read(&lun, 0, 1536), [[0; 512], [0; 512], [3; 512]].concat());
    assert_eq!(lun.ghosts(), [512..1024, 1024..1536]);
    assert_eq!(lun.prove_ended(ClientId(1)), Proof::Unprovable);
    blocking::write(&lun, 512, data(512, 9), false).unwrap();
    assert_eq!(lun.deliver_ghosts(), 1);
    assert_eq!(read(&lun, 512, 512), [2; 512], "the late write lands over the newer one");
    assert_eq!(lun.deliver_ghosts(), 0);
    lun.kill_ghosts();
    assert!(lun.ghosts().is_empty());
}

#[test]
fn held_requests_wait_for_their_release() {
    let lun = FaultyLun::new(Arc::new(MemoryLun::new(1 << 20)));
    lun.plan(|asked| if asked.kind == Kind::Flush { Fault::Hold } else { Fault::None });
    let (sender, receiver) = mpsc::channel();
    lun.flush(Box::new(move |outcome| sender.send(outcome).unwrap()));
    assert!(receiver.try_recv().is_err());
    assert_eq!((lun.held(), lun.release()), (1, 1));
    assert_eq!(receiver.try_recv(), Ok(Outcome::Done));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_image_is_an_array(
        steps in prop::collection::vec((0..3_u8, 0..2_000_000_u64, 0..600_000_usize, any::<u8>()), 1..12)
    ) {
        let mut model = vec![0_u8; 2_600_000];
        let mut image = Image::default();
        for (kind, offset, len, byte) in steps {
            let start = usize::try_from(offset).unwrap();
            let (byte, len) = match kind {
                0 => (0, len),
                1 => (byte, len),
                _ => (byte, len % 9000),
            };
            model[start..start + len].fill(byte);
            if kind == 2 {
                image.write(offset, &vec![byte; len]);
            } else {
                image.fill(offset..offset + len as u64, byte);
            }
            let _ = image.fingerprint();
        }
        let mut read = vec![1; model.len()];
        image.read(0, &mut read);
        prop_assert!(read == model);
        let mut fresh = Image::default();
        fresh.write(0, &model);
        prop_assert_eq!(fresh.fingerprint(), image.fingerprint());
    }
}
