//! What format makes, and what it refuses.

use lockd::ids::ClientId;
use redirector::lun::Proof;

use super::*;
use crate::disk::layout;
use crate::disk::survey::Survey;

#[test]
fn known_signatures_are_refused_by_name_and_forced_away() {
    let cases: &[(u64, &[u8], &str)] = &[
        (0x438, &[0x53, 0xef], "ext4"),
        (0, b"XFSB", "XFS"),
        (0x1_0040, b"_BHRfS_M", "Btrfs"),
        (0x200, b"LABELONE", "LVM"),
        (512, b"EFI PART", "GPT"),
        (510, &[0x55, 0xaa], "MBR"),
        (4086, b"SWAPSPACE2", "swap"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (0, b"QFI\xfb", "qcow2"),
        (0, b"hsqs", "SquashFS"),
        (0x1_0000, &[1, 0x16, 0x19, 0x70], "GFS2"),
        (0x2000, b"OCFSV2", "OCFS2"),
        (0x2_0400, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], "ZFS"),
        (64 * MIB - 512, b"EFI PART", "GPT"),
        (64 * MIB - 8192, &[0xfc, 0x4e, 0x2b, 0xa9], "RAID"),
    ];
    for (at, bytes, name) in cases {
        let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
        lun.poke(*at, bytes);
        let before = lun.image();
        let error = make(&lun, &clock).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("--force"), "{name}: {error}");
        assert!(lun.image() == before, "{name}: a refused format has written");
        make_with(&lun, &FormatOptions { force: true, ..format_options(&clock) }).unwrap();
        assert_ne!(lun.peek(*at, bytes.len()), *bytes, "{name} is still there");
        open_as(&lun.wire(), 1, &clock).unwrap().close().unwrap();
    }
}

#[test]
fn impossible_wishes_are_refused() {
    let clock = BenchClock::new();
    let error = make(&BenchLun::new(64 * MIB - 4096), &clock).unwrap_err().to_string();
    assert!(error.contains("64 MiB"), "{error}");
    let lun = BenchLun::new(64 * MIB);
    let named = FormatOptions { name: "n".repeat(65), ..format_options(&clock) };
    assert!(make_with(&lun, &named).unwrap_err().to_string().contains("65 bytes"));
    let window = FormatOptions { window: std::time::Duration::ZERO, ..format_options(&clock) };
    assert!(matches!(make_with(&lun, &window), Err(FormatError::Window(_))));
}

#[test]
fn a_volume_in_use_is_not_formatted_even_by_force() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let force = FormatOptions { force: true, client: ClientId(9), ..format_options(&clock) };
    let error = make(&lun, &clock).unwrap_err().to_string();
    assert!(error.contains("csvfs volume \"test\""), "{error}");

    let volume = Arc::new(open_as(&lun.wire(), 1, &clock).unwrap());
    let beating = Arc::clone(&volume);
    clock.on_sleep(move || beating.hold.beat().unwrap());
    let error = make_with(&lun, &force).unwrap_err().to_string();
    assert!(error.contains("host1") && error.contains("4001"), "{error}");
    put(&volume.database, 1, &[1]);

    // Its host is gone: the claim is still, and force may.
    clock.on_sleep(|| {});
    make_with(&lun, &force).unwrap();
    assert_eq!(keys(&open_as(&lun.wire(), 2, &clock).unwrap().database), [0]);
    lun.prove_alone(Proof::Alive("process 5".to_owned()));
    assert!(make_with(&lun, &force).unwrap_err().to_string().contains("process 5"));
}

#[test]
fn sizes_that_are_no_multiples_are_used_as_far_as_they_go() {
    for size in [64 * MIB + 512, 100 * MIB + 123 * 4096] {
        let (lun, clock) = (BenchLun::new(size), BenchClock::new());
        let mut blocks = 0;
        let wire: Arc<dyn Lun> = lun.wire();
        let label = format(&wire, &format_options(&clock), |database, free| {
            blocks = free.iter().map(|run| run.len).sum();
            assert!(free.iter().all(|run| run.bytes().end <= size && run.bytes().start >= MIB));
            put(database, 0, &[]);
            Ok::<_, std::io::Error>(())
        });
        let label = label.unwrap();
        assert_eq!(label.lun_size, size / 4096 * 4096);
        let survey = Survey::read(lun.wire().as_ref()).unwrap();
        let taken = survey.map.spare().len() + survey.map.reserve().len() + 1;
        let taken = (taken + survey.map.all_of(survey.superblock.side).len()) as u64;
        assert_eq!(blocks, label.lun_size / 4096 - taken * MIB / 4096);
        assert!(survey.findings.is_empty());
        assert!(taken * MIB <= size / 2, "{taken} MiB of {size} bytes are not for file data");
        open_as(&lun.wire(), 1, &clock).unwrap().close().unwrap();
    }
    assert_eq!(layout::HEAD, 256 * 4096);
}
