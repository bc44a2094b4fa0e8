use proptest::prelude::*;

use super::super::stock::Stock;
use super::*;
use crate::proto::WrittenRun;

fn range(start: u64, end: u64) -> Range<FileBlock> {
    FileBlock(start)..FileBlock(end)
}

fn stock(blocks: u64) -> Stock {
    let mut stock = Stock::default();
    stock.add(Run { start: LunBlock(1000), len: blocks });
    stock
}

fn known(file: u64, lun: u64, len: u64, state: ExtentState, shared: bool) -> Extent {
    Extent { file: FileBlock(file), lun: LunBlock(lun), len, state, shared }
}

#[test]
fn a_write_into_a_hole_is_readable_when_done_and_known_when_committed() {
    let mut layout = Layout::default();
    let mut stock = stock(100);
    let segments = layout.fill(range(10, 14), &mut stock, true).unwrap();
    assert_eq!(segments.len(), 1);
    assert_eq!(segments[0].base, Base::Blank);
    assert_eq!(layout.at(FileBlock(10)).data, None, "not before it is done");
    let again = layout.fill(range(10, 14), &mut stock, true).unwrap();
    assert_eq!(again[0].lun, segments[0].lun, "two writers of one hole end on one mapping");
    layout.written(FileBlock(10), segments[0].lun, 4);
    assert_eq!(layout.at(FileBlock(11)), Span { len: 3, data: Some(segments[0].lun + 1), in_place: true });
    assert_eq!(layout.new_blocks(), 4);
    let (runs, replaces) = layout.dirty_runs(FileBlock(0), 100);
    assert_eq!((runs.len(), runs[0].len, replaces), (1, 4, false));
    layout.committed(&runs);
    assert_eq!(layout.new_blocks(), 0);
    assert_eq!(layout.dirty_parts(), 0);
    assert!(layout.cut(&range(0, 100)).iter().all(|run| run.start.0 < 1000 || run.start.0 > 1003));
}

#[test]
fn a_growing_file_gets_blocks_ahead_in_one_piece() {
    let mut layout = Layout::default();
    let mut stock = stock(100_000);
    for block in 0..3000 {
        let segments = layout.fill(range(block, block + 1), &mut stock, true).unwrap();
        layout.written(segments[0].file, segments[0].lun, 1);
    }
    assert!(layout.len() <= 2, "data and speculation");
    let ahead = layout.fresh_blocks();
    assert!((1000..=2 * 2048).contains(&ahead), "{ahead}");
    let back: u64 = layout.cut_fresh(&range(0, u64::MAX)).iter().map(|run| run.len).sum();
    assert_eq!(back, ahead);
    assert_eq!(stock.free() + back + 3000, 100_000);
}

#[test]
fn shared_blocks_are_copied_and_own_ones_are_not() {
    let mut layout = Layout::default();
    layout.load(
        &range(0, u64::MAX),
        &[
            known(0, 50, 4, ExtentState::Written, true),
            known(4, 60, 4, ExtentState::Written, false),
            known(8, 70, 2, ExtentState::Unwritten, true),
        ],
    );
    assert!(layout.has_shared(range(3, 5)) && !layout.has_shared(range(4, 8)));
    let mut stock = stock(100);
    let segments = layout.fill(range(2, 9), &mut stock, true).unwrap();
    let bases: Vec<Base> = segments.iter().map(|segment| segment.base).collect();
    assert_eq!(bases, [Base::Copy(Some(LunBlock(52))), Base::Own, Base::Copy(None)]);
    assert_eq!(layout.at(FileBlock(2)).data, Some(LunBlock(52)), "the old data until the copy is written");
    layout.replaced(segments[0].file, segments[0].lun, segments[0].len);
    assert_eq!(layout.at(FileBlock(2)).data, Some(segments[0].lun));
    assert_eq!(layout.at(FileBlock(1)).data, Some(LunBlock(51)));
    assert!(layout.dirty_runs(FileBlock(0), 9).1);
}

#[test]
fn too_small_a_stock_takes_nothing() {
    let mut layout = Layout::default();
    let mut stock = stock(3);
    assert_eq!(layout.fill(range(0, 4), &mut stock, true), Err(Short(4)));
    assert_eq!((stock.free(), layout.len()), (3, 0));
    assert!(layout.fill(range(0, 3), &mut stock, true).is_ok());
}

/// What a block of the model is.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Model {
    Hole,
    Blank(u64),
    Data(u64),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_map_agrees_with_one_of_single_blocks(
        steps in prop::collection::vec((0..5_u8, 0..40_u64, 1..12_u64), 1..60)
    ) {
        let mut layout = Layout::default();
        let mut stock = stock(10_000);
        let mut model = vec![Model::Hole; 64];
        for (what, start, len) in steps {
            let blocks = range(start, start + len);
            match what {
                0 | 1 => {
                    let segments = layout.fill(blocks.clone(), &mut stock, true).unwrap();
                    prop_assert_eq!(segments.iter().map(|segment| segment.len).sum::<u64>(), len);
                    for piece in layout.pieces(range(0, 64)).filter(|piece| piece.content == Content::Fresh) {
                        for block in 0..piece.len {
                            let at = &mut model[usize::try_from(piece.file.0 + block).unwrap()];
                            if *at == Model::Hole {
                                *at = Model::Blank(piece.lun.0 + block);
                            }
                        }
                    }
                    if what == 0 {
                        for segment in segments {
                            layout.written(segment.file, segment.lun, segment.len);
                            for block in 0..segment.len {
                                model[usize::try_from(segment.file.0 + block).unwrap()] =
                                    Model::Data(segment.lun.0 + block);
                            }
                        }
                    }
                }
                2 => {
                    for run in layout.cut(&blocks) {
                        stock.add(run);
                    }
                    for block in start..start + len {
                        model[usize::try_from(block).unwrap()] = Model::Hole;
                    }
                }
                3 => {
                    let (runs, _) = layout.dirty_runs(FileBlock(start), 3);
                    for WrittenRun { file, lun, len } in &runs {
                        for block in 0..*len {
                            prop_assert_eq!(
                                model[usize::try_from(file.0 + block).unwrap()],
                                Model::Data(lun.0 + block)
                            );
                        }
                    }
                    layout.committed(&runs);
                }
                _ => {
                    for run in layout.cut_fresh(&blocks) {
                        stock.add(run);
                    }
                    for block in start..start + len {
                        let at = &mut model[usize::try_from(block).unwrap()];
                        if matches!(at, Model::Blank(_)) {
                            *at = Model::Hole;
                        }
                    }
                }
            }
            for (block, expected) in (0_u64..).zip(&model) {
                let data = layout.at(FileBlock(block)).data;
                match expected {
                    Model::Data(lun) => prop_assert_eq!(data, Some(LunBlock(*lun)), "block {}", block),
                    _ => prop_assert_eq!(data, None, "block {}", block),
                }
            }
            let mapped: u64 = layout.pieces(range(0, 64)).map(|piece| piece.len).sum();
            prop_assert_eq!(mapped, model.iter().filter(|at| **at != Model::Hole).count() as u64);
        }
    }
}
