use super::*;
use crate::types::Kind;

#[test]
fn a_file_is_made_found_listed_written_and_removed() {
    let volume = Volume::new(1000);
    let file = volume.file("a");
    let attr = volume.lookup(Ino::ROOT, "a").unwrap();
    assert_eq!((attr.ino, attr.kind, attr.mode, attr.nlink, attr.uid), (file, Kind::File, 0o644, 1, 1000));
    let lun = volume.write(file, 2, 10);
    let extents = volume.extents(file);
    assert_eq!(extents.len(), 1);
    assert_eq!((extents[0].file, extents[0].lun, extents[0].len), (FileBlock(2), lun, 10));
    assert_eq!(volume.attr(file).blocks, 10);
    assert_eq!(volume.attr(file).size, 12 * 4096);
    volume.truncate(file, 4096 * 5 + 1).unwrap();
    assert_eq!(volume.extents(file)[0].len, 4);
    let listed =
        volume.ask(Operation::ReadDirectory { ino: Ino::ROOT, after: 0, budget: 4096, attributes: true });
    let Ok(Answer::Directory { entries, end: true }) = listed else { panic!("{listed:?}") };
    assert_eq!((entries.len(), entries[0].attr), (1, Some(volume.attr(file))));
    assert_eq!(volume.unlink(Ino::ROOT, "a"), Ok(Answer::Removed { ino: file, nlink: 0 }));
    assert_eq!(volume.lookup(Ino::ROOT, "a"), Err(Refusal::NotFound));
    assert_eq!(volume.ask(Operation::GetAttr { ino: file }), Err(Refusal::NotFound));
}
