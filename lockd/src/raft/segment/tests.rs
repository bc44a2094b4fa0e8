use proptest::prelude::*;

use super::*;

const STORAGE: StorageId = StorageId([7; 16]);

fn file(records: &[Record]) -> (Header, Vec<u8>) {
    let header = Header { storage: STORAGE, first_serial: 5, vote: None, purged: None };
    let mut file = header.encode().to_vec();
    for (serial, record) in (5..).zip(records) {
        record.encode(STORAGE, serial, serial - 1, &mut file);
    }
    file.resize(16_384, 0);
    (header, file)
}

#[test]
fn golden_bytes() {
    let (header, file) = file(&[Record::Truncate(0x0102)]);
    assert_eq!(Header::decode(&file).unwrap(), header);
    assert_eq!(&file[..12], b"CSVRAFTL\x01\0\0\0");
    assert_eq!(crc32fast::hash(&file[..HEADER_BYTES]), 0xa4d2_bcd1);
    #[rustfmt::skip]
    let expected = [
        0x43, 0x52, 3, 0,  8, 0, 0, 0,  5, 0, 0, 0, 0, 0, 0, 0,  4, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(&file[HEADER_BYTES..HEADER_BYTES + 24], expected);
    assert_eq!(&file[HEADER_BYTES + 32..HEADER_BYTES + 40], [2, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_torn_tail_ends_the_file_and_damage_does_not() {
    let records: Vec<Record> = (0..200).map(Record::Truncate).collect();
    let (header, whole) = file(&records);
    let scanned = scan(&header, &whole).unwrap();
    assert_eq!((&scanned.records, scanned.next_serial, scanned.torn), (&records, 205, false));

    // The sectors from 4096 on were not written.
    let mut torn = whole.clone();
    torn[4096..].fill(0);
    let scanned = scan(&header, &torn).unwrap();
    assert!(scanned.records.len() < 200 && scanned.records == records[..scanned.records.len()]);

    // A sector in the middle is gone, and later records say that it had been there.
    let mut damaged = whole.clone();
    damaged[4096..4608].fill(0);
    assert!(scan(&header, &damaged).is_err());

    // Records of another directory are none.
    let mut foreign = header.encode().to_vec();
    Record::Truncate(1).encode(StorageId([8; 16]), 5, 4, &mut foreign);
    foreign.resize(1024, 0);
    assert!(scan(&header, &foreign).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0..6_u8) {
        let _ = Header::decode(&bytes);
        let _ = Record::decode(kind, &bytes);
        let header = Header { storage: STORAGE, first_serial: 1, vote: None, purged: None };
        let mut file = header.encode().to_vec();
        file.extend_from_slice(&bytes);
        let _ = scan(&header, &file);
    }
}
