//! A LUN in memory that forgets what was not flushed when the power goes, remembers its writes, and loses its clients.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use lockd::ids::ClientId;
use parking_lot::Mutex;
use redirector::buffer::{Buffer, Slice};
use redirector::lun::{Geometry, Lun, OnDone, OnRead, Outcome, Proof};

/// What has happened to the LUN.
#[derive(Clone, Debug)]
pub enum Event {
    Write { offset: u64, data: Vec<u8>, fua: bool },
    Flush,
}

/// The contents of a LUN: what was never written is zero. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    pub size: u64,
    pages: HashMap<u64, Arc<[u8; PAGE]>>,
}

const PAGE: usize = 4096;

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} bytes)", self.size)
    }
}

impl Image {
    fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = usize::try_from(offset).unwrap() + done;
            let part = (PAGE - at % PAGE).min(len - done);
            done += part;
            (part > 0).then_some(((at / PAGE) as u64, at % PAGE, done - part..done))
        })
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        assert!(offset + len as u64 <= self.size, "a read beyond the end");
        let mut out = vec![0; len];
        for (page, start, place) in Self::parts(offset, len) {
            if let Some(found) = self.pages.get(&page) {
                let part = place.len();
                out[place].copy_from_slice(&found[start..start + part]);
            }
        }
        out
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.size, "a write beyond the end");
        for (page, start, place) in Self::parts(offset, data.len()) {
            let found = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(found)[start..start + place.len()].copy_from_slice(&data[place]);
        }
    }
}

#[derive(Debug)]
struct Disk {
    image: Image,
    events: Vec<Event>,
    /// Whether events are remembered.
    records: bool,
    late: Vec<(u64, Vec<u8>)>,
    proofs: HashMap<ClientId, Proof>,
    alone: Proof,
}

/// The LUN itself; clients reach it through a [`Wire`].
#[derive(Clone, Debug)]
pub struct BenchLun {
    disk: Arc<Mutex<Disk>>,
    pub geometry: Geometry,
}

impl BenchLun {
    pub fn new(size: u64) -> Self {
        Self::from_image(Image { size, pages: HashMap::new() })
    }

    pub fn from_image(image: Image) -> Self {
        let geometry = Geometry {
            size: image.size,
            block_size: 512,
            request_max: 1 << 20,
            trim: true,
            write_zeroes: true,
            volatile_cache: true,
        };
        let disk = Disk {
            image,
            events: Vec::new(),
            records: true,
            late: Vec::new(),
            proofs: HashMap::new(),
            alone: Proof::Unprovable,
        };
        Self { disk: Arc::new(Mutex::new(disk)), geometry }
    }

    pub fn wire(&self) -> Arc<Wire> {
        Arc::new(Wire { lun: self.clone(), state: Mutex::new(WireState::default()) })
    }

    pub fn image(&self) -> Image {
        self.disk.lock().image.clone()
    }

    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        self.disk.lock().image.write(offset, bytes);
    }

    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        self.disk.lock().image.read(offset, len)
    }

    pub fn events(&self) -> Vec<Event> {
        self.disk.lock().events.clone()
    }

    /// From now on no event is remembered.
    pub fn record_no_more(&self) {
        self.disk.lock().records = false;
    }

    pub fn forget_events(&self) {
        self.disk.lock().events.clear();
    }

    pub fn prove(&self, client: ClientId, proof: Proof) {
        self.disk.lock().proofs.insert(client, proof);
    }

    pub fn prove_alone(&self, proof: Proof) {
        self.disk.lock().alone = proof;
    }

    /// Executes, now, what cut wires had sent; says how many writes that were.
    pub fn deliver_late(&self) -> usize {
        let mut disk = self.disk.lock();
        let late = std::mem::take(&mut disk.late);
        for (offset, data) in &late {
            disk.image.write(*offset, data);
        }
        late.len()
    }
}

/// The image that a power cut leaves after `events` on `start`: what was flushed or written with FUA is there; of the
/// rest, what `survives` says, torn at 512 bytes where it says so.
pub fn after_power_cut(
    start: &Image,
    events: &[Event],
    mut survives: impl FnMut(usize) -> Survival,
) -> Image {
    let flushed = events.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
    let mut image = start.clone();
    for (i, event) in events.iter().enumerate() {
        let Event::Write { offset, data, fua } = event else { continue };
        let len = if i < flushed || *fua {
            data.len()
        } else {
            match survives(i) {
                Survival::Whole => data.len(),
                Survival::Torn => data.len() / 1024 * 512,
                Survival::Lost => 0,
            }
        };
        image.write(*offset, &data[..len]);
    }
    image
}

#[derive(Clone, Copy, Debug)]
pub enum Survival {
    Whole,
    Torn,
    Lost,
}

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct WireState {
    cut: bool,
    /// Requests so far.
    requests: usize,
    hook: Option<(usize, Hook)>,
    /// The next so many writes end well, then one ends so, and the wire is cut if it is unknown.
    fail_after: Option<(usize, Outcome)>,
    /// Of each write a copy that was lost on its way may still land.
    doubles: bool,
    /// Called before each write: its range.
    on_write: Option<Box<dyn FnMut(Range<u64>) + Send>>,
}

/// One client's way to the LUN.
pub struct Wire {
    lun: BenchLun,
    state: Mutex<WireState>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

impl Wire {
    /// From now on nothing comes back: reads fail, writes may be executed later.
    pub fn cut(&self) {
        self.state.lock().cut = true;
    }

    /// Runs `hook` before this wire's request number `request`.
    pub fn before(&self, request: usize, hook: impl FnOnce() + Send + 'static) {
        self.state.lock().hook = Some((request, Box::new(hook)));
    }

    pub fn requests(&self) -> usize {
        self.state.lock().requests
    }

    pub fn fail_write_after(&self, writes: usize, outcome: Outcome) {
        self.state.lock().fail_after = Some((writes, outcome));
    }

    /// From now on a copy of each write may land late, or no more.
    pub fn double(&self, doubles: bool) {
        self.state.lock().doubles = doubles;
    }

    pub fn on_write(&self, hook: impl FnMut(Range<u64>) + Send + 'static) {
        self.state.lock().on_write = Some(Box::new(hook));
    }

    fn request(&self) -> bool {
        let hook = {
            let mut state = self.state.lock();
            state.requests += 1;
            let requests = state.requests;
            state.hook.take_if(|(at, _)| *at == requests)
        };
        if let Some((_, hook)) = hook {
            hook();
        }
        self.state.lock().cut
    }
}

impl Lun for Wire {
    fn geometry(&self) -> Geometry {
        self.lun.geometry
    }

    fn read(&self, offset: u64, mut buffer: Buffer, on_read: OnRead) {
        if self.request() {
            return on_read(Outcome::Unknown, buffer);
        }
        let bytes = self.lun.peek(offset, buffer.len());
        buffer.copy_from_slice(&bytes);
        on_read(Outcome::Done, buffer);
    }

    fn write(&self, offset: u64, data: Slice, fua: bool, on_done: OnDone) {
        let cut = self.request();
        assert!(
            offset.is_multiple_of(512) && data.len().is_multiple_of(512),
            "an unaligned write: {} at {offset}",
            data.len()
        );
        let (outcome, doubles) = {
            let mut state = self.state.lock();
            if let Some(hook) = &mut state.on_write {
                hook(offset..offset + data.len() as u64);
            }
            let doubles = state.doubles;
            let outcome = match &mut state.fail_after {
                Some((0, outcome)) => {
                    let outcome = *outcome;
                    state.cut |= outcome == Outcome::Unknown;
                    outcome
                }
                Some((left, _)) => {
                    *left -= 1;
                    Outcome::Done
                }
                None if cut => Outcome::Unknown,
                None => Outcome::Done,
            };
            (outcome, doubles)
        };
        {
            let mut disk = self.lun.disk.lock();
            if doubles {
                disk.late.push((offset, data.to_vec()));
            }
            match outcome {
                Outcome::Done => {
                    disk.image.write(offset, &data);
                    if disk.records {
                        disk.events.push(Event::Write { offset, data: data.to_vec(), fua });
                    }
                }
                Outcome::Unknown => disk.late.push((offset, data.to_vec())),
                Outcome::Failed(_) => {}
            }
        }
        on_done(outcome);
    }

    fn flush(&self, on_done: OnDone) {
        if self.request() {
            return on_done(Outcome::Unknown);
        }
        self.lun.disk.lock().events.push(Event::Flush);
        on_done(Outcome::Done);
    }

    fn zero(&self, _range: Range<u64>, on_done: OnDone) {
        on_done(Outcome::Failed(libc::EOPNOTSUPP));
    }

    fn trim(&self, _range: Range<u64>, on_done: OnDone) {
        on_done(Outcome::Done);
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        let disk = self.lun.disk.lock();
        disk.late.iter().map(|(offset, data)| *offset..*offset + data.len() as u64).collect()
    }

    fn prove_ended(&self, earlier: ClientId) -> Proof {
        self.lun.disk.lock().proofs.get(&earlier).cloned().unwrap_or(Proof::Unprovable)
    }

    fn prove_alone(&self) -> Proof {
        self.lun.disk.lock().alone.clone()
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}
