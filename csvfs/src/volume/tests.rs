//! What a crash leaves of a volume: what only the redo journal has (V12).

use std::ops::Range;

use lockd::rules::Rules;
use redirector::buffer::{Buffer, Slice};
use redirector::lun::{Geometry, OnDone, OnRead, Proof};
use redirector::memory::{Image, MemoryLun};

use super::*;
use crate::fsck;
use crate::proto::{Created, RenameMode, XattrMode};
use crate::refusal::Refusal;
use crate::service::{Credentials, OpenMode, WriteMode};
use crate::store::dump;
use crate::types::Ino;

const WHO: Credentials = Credentials { uid: 0, gid: 0, umask: 0 };
const FILES: usize = 300;
const SIZE: u64 = 512 << 20;

/// A LUN that proves nothing: after a crash the store is copied.
#[derive(Debug)]
struct Silent(MemoryLun, parking_lot::Mutex<Option<Duration>>);

impl Lun for Silent {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read(&self, offset: u64, buffer: Buffer, on_read: OnRead) {
        self.0.read(offset, buffer, on_read);
    }
    fn write(&self, offset: u64, data: Slice, fua: bool, on_done: OnDone) {
        self.0.write(offset, data, fua, on_done);
    }
    fn flush(&self, on_done: OnDone) {
        self.0.flush(on_done);
    }
    fn zero(&self, range: Range<u64>, on_done: OnDone) {
        self.0.zero(range, on_done);
    }
    fn trim(&self, range: Range<u64>, on_done: OnDone) {
        self.0.trim(range, on_done);
    }
    fn ghosts(&self) -> Vec<Range<u64>> {
        self.0.ghosts()
    }
    fn prove_ended(&self, _: ClientId) -> Proof {
        Proof::Unprovable
    }
    fn prove_alone(&self) -> Proof {
        Proof::Unprovable
    }
    fn assume_quiesce(&self, quiesce: Duration) {
        *self.1.lock() = Some(quiesce);
    }
    fn describe(&self) -> String {
        "a LUN that proves nothing".to_owned()
    }
}

fn settings() -> Settings {
    Settings {
        rules: Rules::from_test_environment(),
        window: Some(Duration::from_millis(200)),
        ..Settings::local("test")
    }
}

fn lun(image: Image, proves: bool) -> Arc<dyn Lun> {
    let lun = MemoryLun::with_geometry(redirector::memory::geometry(SIZE), image);
    if proves { Arc::new(lun) } else { Arc::new(Silent(lun, Default::default())) }
}

fn wait<T: Send + 'static>(call: impl FnOnce(crate::service::Done<T>)) -> Result<T, Refusal> {
    let (sender, receiver) = mpsc::sync_channel(1);
    call(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap()
}

type Rows = Vec<(&'static str, Vec<u8>, Vec<u8>)>;

/// A volume with files that were made, renamed, given attributes and removed again; what its LUN holds while it is open,
/// and the rows of its store at that time.
fn crashed() -> (Image, Rows) {
    let memory = Arc::new(MemoryLun::new(SIZE));
    let short = Duration::from_millis(200);
    let how = FormatSettings { window: short, quiesce: short, ..FormatSettings::default() };
    format(&(Arc::clone(&memory) as Arc<dyn Lun>), &how).unwrap();
    let volume = Volume::open(Arc::clone(&memory) as Arc<dyn Lun>, settings()).unwrap();
    let service = volume.service();
    for i in 0..FILES {
        let name = format!("file{i}");
        let attr = wait(|done| {
            service.create(WHO, Ino::ROOT, name.as_bytes(), Created::File, 0o644, done);
        })
        .unwrap();
        match i % 4 {
            0 => wait(|done| service.unlink(Ino::ROOT, name.as_bytes(), done)).unwrap(),
            1 => {
                let to = format!("renamed{i}");
                wait(|done| {
                    let mode = RenameMode::Replace;
                    service.rename(Ino::ROOT, name.as_bytes(), Ino::ROOT, to.as_bytes(), mode, done);
                })
                .unwrap();
            }
            2 => wait(|done| {
                service.set_xattr(attr.ino, b"user.colour", b"red", XattrMode::Set, false, done);
            })
            .unwrap(),
            _ => {
                let mode = OpenMode { write: true, ..OpenMode::default() };
                let opened = wait(|done| service.open(attr.ino, mode, done)).unwrap();
                let mut buffer = volume.pool().take(8192);
                buffer.fill(7);
                let data = buffer.share();
                wait(|done| service.write(opened.handle, 0, data, WriteMode::default(), done)).unwrap();
                wait(|done| service.sync(opened.handle, done)).unwrap();
                service.release(opened.handle);
            }
        }
    }
    let office = volume.office.as_ref().unwrap();
    loop {
        let before = dump(&office.database).unwrap();
        let image = memory.snapshot();
        // Nothing was committed meanwhile.
        if dump(&office.database).unwrap() == before {
            return (image, before);
        }
    }
}

fn without_numbers_of_the_journal(rows: &Rows) -> Rows {
    let mut rows = rows.clone();
    let counters = &mut rows.iter_mut().find(|(table, ..)| *table == "counters").unwrap().2;
    let end = counters.len() - 16;
    counters[end..].fill(0);
    rows
}

fn count_of(rows: &Rows, table: &str) -> usize {
    rows.iter().filter(|(name, ..)| *name == table).count()
}

/// The rows of the store when it is only looked at, and how many of them are not in the journal alone.
fn looked_at(image: &Image) -> (Rows, usize) {
    let lun = lun(image.clone(), true);
    let survey = Survey::read(lun.as_ref()).unwrap();
    let options = ViewOptions::default();
    let rules = Rules::from_test_environment();
    let view = open_read_only(&lun, survey.clone(), &options, &replayer(rules)).unwrap();
    let rows = dump(&view.database).unwrap();
    let bare = open_read_only(&lun, survey, &options, &open::Replay::none()).unwrap();
    (rows, count_of(&dump(&bare.database).unwrap(), "entries"))
}

#[test]
fn v12_what_is_only_in_the_journal_is_there_after_a_crash() {
    let (image, rows) = crashed();
    assert_eq!(count_of(&rows, "entries"), FILES * 3 / 4);
    let (seen, in_store) = looked_at(&image);
    assert!(
        in_store < FILES / 2,
        "{in_store} of the files are in the store itself: it is made durable too often"
    );
    assert!(seen == rows, "the store and its journal are not what the mount had");
    for proves in [true, false] {
        let lun = lun(image.clone(), proves);
        assert_eq!(fsck::check(&lun).unwrap(), [""; 0]);
        let opened = open::open(Arc::clone(&lun), settings().open_options()).unwrap();
        assert_eq!(matches!(opened.opened, Opened::InPlace(_)), proves, "{}", opened.opened);
        let found = dump(&opened.database).unwrap();
        let journal = opened.journal.as_ref().map(Journal::epoch);
        assert!(without_numbers_of_the_journal(&found) == without_numbers_of_the_journal(&rows));
        assert_eq!(journal, Some(opened.epoch));
        opened.close().unwrap();
        assert_eq!(fsck::check(&lun).unwrap(), [""; 0]);
        // Opened once more, and used: what was in the journal is not applied a second time.
        let volume = Volume::open(Arc::clone(&lun), settings()).unwrap();
        let service = volume.service();
        wait(|done| service.unlink(Ino::ROOT, b"file3", done)).unwrap();
        volume.abandon();
        let volume = Volume::open(Arc::clone(&lun), settings()).unwrap();
        let service = volume.service();
        assert_eq!(wait(|done| service.lookup(Ino::ROOT, b"file3", done)), Err(Refusal::NotFound));
        wait(|done| service.lookup(Ino::ROOT, b"file7", done)).unwrap();
        drop(service);
        volume.close().unwrap();
        assert_eq!(fsck::check(&lun).unwrap(), [""; 0]);
    }
}

#[test]
fn v12_a_store_with_a_damaged_page_is_made_anew_with_what_the_journal_has() {
    let (image, rows) = crashed();
    let lun = lun(image, true);
    let survey = Survey::read(lun.as_ref()).unwrap();
    let Rescued { database, walk, journal } = rescue(&lun, &survey).unwrap().unwrap();
    assert!(walk.bad.is_empty() && journal.is_none());
    assert!(dump(&database).unwrap() == rows);
}

#[test]
fn a_mount_assumes_of_its_target_what_the_cluster_says_and_else_the_label() {
    let (image, _) = crashed();
    for (of_cluster, expected_ms) in [(None, 200), (Some(Duration::from_millis(700)), 700)] {
        let memory = MemoryLun::with_geometry(redirector::memory::geometry(SIZE), image.clone());
        let silent = Arc::new(Silent(memory, Default::default()));
        let settings = Settings { quiesce: of_cluster, ..settings() };
        let volume = Volume::open(Arc::clone(&silent) as Arc<dyn Lun>, settings.clone()).unwrap();
        assert_eq!(*silent.1.lock(), Some(Duration::from_millis(expected_ms)));
        volume.abandon();
        assert_eq!(settings.open_options().quiesce, of_cluster, "V2");
    }
}
