//! Flipped bytes in the store of a volume with some thousand files.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lockd::ids::ClientId;
use tempfile::TempDir;

use super::*;
use crate::coordinator::Scrub;
use crate::disk::open::open;
use crate::refusal::Refusal;
use crate::store::bulk;
use crate::store::redo::replayer;
use crate::types::{Attr, Ino};
use crate::volume::{FormatSettings, Volume, format};

const FILES: u64 = 3000;

struct Bench {
    folder: TempDir,
    whole: Vec<u8>,
    /// Each page of the store that holds something: byte of the LUN.
    pages: Vec<u64>,
}

fn lun_at(path: &Path) -> Arc<dyn Lun> {
    let url: LunUri = format!("file:{}", path.display()).parse().unwrap();
    let options = redirector::open::OpenOptions::new(ClientId(77), [7; 16]);
    redirector::open::open(&url, &options).unwrap()
}

impl Bench {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("lun.img");
        std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let lun = lun_at(&path);
        let short = Duration::from_millis(500);
        format(&lun, &FormatSettings { window: short, quiesce: short, ..FormatSettings::default() }).unwrap();
        let opened =
            open(Arc::clone(&lun), OpenOptions::new(ClientId(77), "test", replayer(Rules::all()))).unwrap();
        let key = HashKey(opened.label.hash_key);
        bulk::load(&opened.database, &key, FILES, Timestamp(0)).unwrap();
        opened.close().unwrap();
        let survey = Survey::read(lun.as_ref()).unwrap();
        drop(lun);
        let whole = std::fs::read(&path).unwrap();
        let (size, len) = (survey.label.chunk_size, survey.store_len());
        let chunks = survey.map.area(survey.superblock.side);
        let places = chunks.flat_map(|(index, chunk)| {
            (0..size)
                .step_by(4096)
                .map(move |at| (u64::from(index) * size + at, u64::from(chunk) * size + at))
        });
        let holds = |at: u64| whole[usize::try_from(at).unwrap()..][..4096].iter().any(|byte| *byte != 0);
        let pages = places.filter(|(area, at)| *area < len && *area > 0 && holds(*at)).map(|(_, at)| at);
        let pages = pages.collect();
        Self { folder, whole, pages }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("lun.img")
    }

    fn url(&self) -> LunUri {
        format!("file:{}", self.path().display()).parse().unwrap()
    }

    /// The volume with one byte of each of `places` flipped.
    fn damaged(&self, places: &[u64]) {
        std::fs::write(self.path(), &self.whole).unwrap();
        self.flip(places);
    }

    /// The volume, whole, opened without a check and with hardly a cache.
    fn opened(&self) -> Volume {
        std::fs::write(self.path(), &self.whole).unwrap();
        let settings = Settings { check_max: 0, cache_bytes: 64 << 10, ..Settings::local("test") };
        Volume::open_url(&[self.url()], settings).unwrap()
    }

    fn flip(&self, places: &[u64]) {
        let file = std::fs::File::options().write(true).open(self.path()).unwrap();
        for at in places {
            let byte = self.whole[usize::try_from(*at).unwrap()];
            file.write_all_at(&[byte ^ 4], *at).unwrap();
        }
    }
}

fn quiet() -> impl FnMut(&'static str, u64, u64) {
    |_, _, _| {}
}

/// What is in the volume: names in all directories.
fn names(path: &Path) -> usize {
    let opened = open(lun_at(path), OpenOptions::new(ClientId(77), "test", replayer(Rules::all()))).unwrap();
    let rows = crate::store::dump(&opened.database).unwrap();
    opened.close().unwrap();
    rows.iter().filter(|(table, _, _)| *table == "entries").count()
}

#[test]
fn whatever_page_is_damaged_fsck_names_the_loss_and_repairs_the_rest() {
    let bench = Bench::new();
    let (mut tables, mut harmless, mut lost_all) = (BTreeMap::new(), 0, 0);
    for at in bench.pages.iter().step_by(4) {
        bench.damaged(&[at + 40]);
        let report = check_url(&bench.url(), Rules::all(), &mut quiet()).unwrap();
        if report.is_clean() {
            harmless += 1;
            continue;
        }
        assert!(report.findings[0].contains("damaged"), "{report:?}");
        let page = report.findings.get(1).cloned().unwrap_or_default();
        let repaired = repair_url(&bench.url(), Rules::all(), &mut quiet()).unwrap();
        assert!(repaired.is_clean(), "page {at}: {repaired:?}");
        assert_eq!(repaired.lost, report.lost, "page {at}");
        let after = check_url(&bench.url(), Rules::all(), &mut quiet()).unwrap();
        assert!(after.is_clean() && after.notes.is_empty(), "page {at}: {after:?}");
        let found = names(&bench.path());
        let mut kind = "none";
        for word in ["records of inodes", "names in directories", "layouts of files", "list of tables"] {
            if page.contains(word) {
                kind = word;
            }
        }
        match kind {
            // Every file but those that are named has its name; whoever lost it is in lost+found.
            "records of inodes" => {
                let gone = report.lost.iter().filter(|lost| lost.contains("is lost: its record")).count();
                // Without the root there are no paths.
                let rootless =
                    report.findings.iter().any(|finding| finding.contains("root directory is missing"));
                // Where all records are gone, the directories' are, too: the files are known by their contents only.
                let nameless =
                    report.lost.iter().any(|lost| lost.starts_with("the contents of the lost file"));
                assert!(gone > 0 || (rootless && nameless), "{report:?}");
                assert!(
                    rootless || report.lost.iter().any(|lost| lost.starts_with("/d")),
                    "no path is named"
                );
            }
            "names in directories" => {
                assert!(report.lost.iter().any(|lost| lost.contains("lost its name")), "{report:?}");
                assert!(found >= usize::try_from(FILES).unwrap(), "{found}");
            }
            "layouts of files" => {
                let all = report.lost.iter().all(|lost| lost.contains("of its 1 blocks"));
                assert!(all && !report.lost.is_empty(), "{report:?}");
                assert_eq!(found, usize::try_from(FILES).unwrap() + 3);
            }
            "list of tables" => lost_all += 1,
            _ => assert!(report.lost.is_empty(), "{page}: {report:?}"),
        }
        *tables.entry(kind).or_insert(0) += 1;
    }
    println!("{tables:?}, {harmless} harmless of {} pages, {lost_all} of the list", bench.pages.len());
    assert!(tables.len() >= 4, "{tables:?}");
}

fn lookup(volume: &Volume, parent: Ino, name: &str) -> Result<Attr, Refusal> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let done = Box::new(move |result| {
        let _ = sender.send(result);
    });
    volume.service().lookup(parent, name.as_bytes(), done);
    receiver.recv_timeout(Duration::from_secs(10)).expect("an answer")
}

/// Whichever page is damaged under a mount, only what needs it fails.
#[test]
fn a_damaged_page_under_a_mount_fails_what_needs_it_and_stops_changes() {
    let bench = Bench::new();
    let (mut met, mut unseen) = (0, 0);
    for at in bench.pages.iter().step_by(7) {
        let volume = bench.opened();
        bench.flip(&[at + 40]);
        let (mut good, mut bad) = (0, 0);
        for folder in 0..FILES / bulk::DIRECTORY_FILES {
            let parent = match lookup(&volume, Ino::ROOT, &format!("d{folder}")) {
                Ok(attr) => attr.ino,
                Err(refusal) => {
                    assert_eq!(refusal.errno(), libc::EIO, "page {at}: {refusal}");
                    bad += 1;
                    continue;
                }
            };
            for file in (0..bulk::DIRECTORY_FILES).step_by(9) {
                let name = format!("f{}", folder * bulk::DIRECTORY_FILES + file);
                match lookup(&volume, parent, &name) {
                    Ok(_) => good += 1,
                    Err(refusal) => {
                        assert_eq!(refusal.errno(), libc::EIO, "page {at}: {refusal}");
                        bad += 1;
                    }
                }
            }
        }
        if bad > 0 {
            met += 1;
            assert!(good > 0 || bad < 10, "page {at}: {good} good, {bad} bad");
            let (sender, receiver) = mpsc::sync_channel(1);
            let made = Box::new(move |result| {
                let _ = sender.send(result);
            });
            volume.service().remove_directory(Ino::ROOT, b"d0", made);
            let refused = receiver.recv_timeout(Duration::from_secs(10)).expect("an answer").unwrap_err();
            assert!(
                refused.to_string().contains("corrupt") && refused.to_string().contains("fsck"),
                "{refused}"
            );
            let status = volume.reporter("l".to_owned(), "m".to_owned()).status();
            assert_eq!(status.state, "failed");
            assert!(status.problem.contains("csvfs fsck"), "{}", status.problem);
        } else {
            unseen += 1;
        }
        volume.abandon();
    }
    println!("{met} met, {unseen} not met");
    assert!(met > 3 && unseen > 0);
}

#[test]
fn damage_that_nobody_meets_is_found_in_the_background() {
    let bench = Bench::new();
    let volume = bench.opened();
    assert!(matches!(volume.scrub().unwrap(), Scrub::Running { .. }));
    // Every page of the later half, none of which anybody asks for.
    let half = &bench.pages[bench.pages.len() / 2..];
    bench.flip(&half.iter().map(|at| at + 40).collect::<Vec<_>>());
    let until = Instant::now() + Duration::from_secs(20);
    while matches!(volume.scrub().unwrap(), Scrub::Running { .. }) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = volume.reporter("l".to_owned(), "m".to_owned()).status();
    assert!(status.metadata.contains("DAMAGED"), "{}", status.metadata);
    assert_eq!(status.state, "failed");
    assert!(status.problem.contains("csvfs fsck"), "{}", status.problem);
    volume.abandon();
    // And of one that is whole this is said.
    let volume = bench.opened();
    let until = Instant::now() + Duration::from_secs(20);
    while matches!(volume.scrub().unwrap(), Scrub::Running { .. }) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        volume.scrub().unwrap().to_string().contains("checked whole since"),
        "{}",
        volume.scrub().unwrap()
    );
    volume.close().unwrap();
}
