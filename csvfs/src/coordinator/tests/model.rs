//! Random operations against a simple model of the metadata, with restarts in between.
//!
//! The model knows names, links and, for each file block, the token that was written to it. What the LUN holds is a map
//! from blocks to tokens: a block that is given to two files, or freed too early, shows as a wrong token.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::proto::{Allocation, XattrMode};
use crate::types::{ExtentState, Kind};

const BLOCKS: u64 = 2000;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const FILE_BLOCKS: u64 = 24;

#[derive(Clone, Debug, Default)]
struct Node {
    directory: bool,
    nlink: u32,
    parent: u64,
    children: BTreeMap<String, u64>,
    /// Tokens of written blocks; `None` for unwritten ones.
    blocks: BTreeMap<u64, Option<u64>>,
    size: u64,
    mode: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
    open: bool,
}

#[derive(Debug)]
struct Model {
    volume: Volume,
    nodes: BTreeMap<u64, Node>,
    disk: HashMap<u64, u64>,
    reserve: BTreeSet<u64>,
    next_token: u64,
    last: Option<(Head, Operation, Reply)>,
}

type Step = (u8, u8, u8, u8, u8);

impl Model {
    fn new() -> Self {
        let root = Node { directory: true, nlink: 2, parent: 1, mode: 0o755, ..Node::default() };
        Self {
            volume: Volume::new(BLOCKS),
            nodes: BTreeMap::from([(1, root)]),
            disk: HashMap::new(),
            reserve: BTreeSet::new(),
            next_token: 1,
            last: None,
        }
    }

    fn pick(&self, by: u8, which: impl Fn(&Node) -> bool) -> Option<u64> {
        let fits: Vec<u64> = self.nodes.iter().filter(|(_, node)| which(node)).map(|(ino, _)| *ino).collect();
        (!fits.is_empty()).then(|| fits[usize::from(by) % fits.len()])
    }

    fn directory(&self, by: u8) -> u64 {
        self.pick(by, |node| node.directory && node.nlink > 0).unwrap_or(1)
    }

    fn child(&self, parent: u64, name: &str) -> Option<u64> {
        self.nodes[&parent].children.get(name).copied()
    }

    fn ask(&mut self, operation: Operation) -> Reply {
        let head = self.volume.head();
        let reply = self.volume.ask_as(head, operation.clone());
        self.last = Some((head, operation, reply.clone()));
        reply
    }

    /// Asks and compares success or refusal.
    fn expect(&mut self, operation: Operation, refusal: Option<Refusal>) -> Option<Answer> {
        let reply = self.ask(operation.clone());
        match (reply, refusal) {
            (Ok(answer), None) => Some(answer),
            (Err(Refusal::Invalid(_)), Some(Refusal::Invalid(_))) => None,
            (Err(found), Some(expected)) if found == expected => None,
            (found, expected) => panic!("{operation:?}: {found:?}, but expected is {expected:?}"),
        }
    }

    fn lose_link(&mut self, ino: u64) {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.nlink = if node.directory { 0 } else { node.nlink - 1 };
        if node.nlink == 0 && !node.open {
            self.nodes.remove(&ino);
        }
    }

    fn create(&mut self, parent: u64, name: &str, what: &Created) {
        let taken = self.child(parent, name).map(|_| Refusal::Exists);
        if let Some(Answer::Entry(attr)) = self.expect(create(Ino(parent), name, what.clone()), taken) {
            let directory = attr.kind == Kind::Directory;
            let node = Node {
                directory,
                nlink: if directory { 2 } else { 1 },
                parent,
                mode: attr.mode,
                size: attr.size,
                ..Node::default()
            };
            self.nodes.insert(attr.ino.0, node);
            let above = self.nodes.get_mut(&parent).unwrap();
            above.children.insert(name.to_owned(), attr.ino.0);
            above.nlink += u32::from(directory);
        }
    }

    fn remove(&mut self, parent: u64, name: &str, directory: bool) {
        let found = self.child(parent, name);
        let refusal = match found {
            None => Some(Refusal::NotFound),
            Some(ino) if self.nodes[&ino].directory && !directory => Some(Refusal::IsDirectory),
            Some(ino) if !self.nodes[&ino].directory && directory => Some(Refusal::NotDirectory),
            Some(ino) if directory && !self.nodes[&ino].children.is_empty() => Some(Refusal::NotEmpty),
            Some(_) => None,
        };
        let (parent_ino, bytes) = (Ino(parent), name.as_bytes().to_vec());
        let operation = if directory {
            Operation::RemoveDirectory { parent: parent_ino, name: bytes, now: NOW }
        } else {
            Operation::Unlink { parent: parent_ino, name: bytes, now: NOW }
        };
        if self.expect(operation, refusal).is_some() {
            let above = self.nodes.get_mut(&parent).unwrap();
            above.children.remove(name);
            above.nlink -= u32::from(directory);
            self.lose_link(found.unwrap());
        }
    }

    fn within(&self, mut at: u64, ancestor: u64) -> bool {
        loop {
            if at == ancestor {
                return true;
            }
            if at == 1 {
                return false;
            }
            at = self.nodes[&at].parent;
        }
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), mode: RenameMode) {
        let (source, target) = (self.child(from.0, from.1), self.child(to.0, to.1));
        let is_directory = |ino: u64| self.nodes[&ino].directory;
        let itself = || Some(Refusal::Invalid(String::new()));
        let refusal = match (source, target) {
            (None, _) => Some(Refusal::NotFound),
            (Some(source), _) if is_directory(source) && self.within(to.0, source) => itself(),
            (_, None) if mode == RenameMode::Exchange => Some(Refusal::NotFound),
            (_, Some(_)) if mode == RenameMode::NoReplace => Some(Refusal::Exists),
            (_, None) => None,
            (Some(source), Some(target)) if source == target => None,
            (Some(_), Some(target)) if mode == RenameMode::Exchange => {
                if is_directory(target) && self.within(from.0, target) { itself() } else { None }
            }
            (Some(source), Some(target)) => match (is_directory(source), is_directory(target)) {
                (true, false) => Some(Refusal::NotDirectory),
                (false, true) => Some(Refusal::IsDirectory),
                (true, true) if !self.nodes[&target].children.is_empty() => Some(Refusal::NotEmpty),
                _ => None,
            },
        };
        let operation = rename((Ino(from.0), from.1), (Ino(to.0), to.1), mode);
        if self.expect(operation, refusal).is_none() || source == target {
            return;
        }
        let source = source.unwrap();
        let nodes = &mut self.nodes;
        let mut place = |parent: u64, name: &str, ino: Option<u64>| {
            let above = nodes.get_mut(&parent).unwrap();
            let old = match ino {
                Some(ino) => above.children.insert(name.to_owned(), ino),
                None => above.children.remove(name),
            };
            if let Some(old) = old.filter(|old| nodes[old].directory) {
                nodes.get_mut(&parent).unwrap().nlink -= 1;
                let _ = old;
            }
            if let Some(ino) = ino.filter(|ino| nodes[ino].directory) {
                nodes.get_mut(&parent).unwrap().nlink += 1;
                nodes.get_mut(&ino).unwrap().parent = parent;
            }
        };
        if mode == RenameMode::Exchange {
            place(from.0, from.1, target);
            place(to.0, to.1, Some(source));
        } else {
            place(from.0, from.1, None);
            place(to.0, to.1, Some(source));
            if let Some(target) = target {
                self.lose_link(target);
            }
        }
    }

    fn link(&mut self, by: u8, parent: u64, name: &str) {
        let Some(ino) = self.pick(by, |_| true) else { return };
        let node = &self.nodes[&ino];
        let refusal = if node.directory {
            Some(Refusal::NotPermitted)
        } else if node.nlink == 0 {
            Some(Refusal::NotFound)
        } else {
            self.child(parent, name).map(|_| Refusal::Exists)
        };
        let operation =
            Operation::Link { ino: Ino(ino), parent: Ino(parent), name: name.as_bytes().to_vec(), now: NOW };
        if self.expect(operation, refusal).is_some() {
            self.nodes.get_mut(&ino).unwrap().nlink += 1;
            self.nodes.get_mut(&parent).unwrap().children.insert(name.to_owned(), ino);
        }
    }

    fn file(&self, by: u8) -> Option<u64> {
        self.pick(by, |node| !node.directory && node.mode != 0o777)
    }

    /// Writes as a node does: in place where blocks are the file's alone, to fresh ones elsewhere.
    fn write(&mut self, ino: u64, from: u64, len: u64) {
        let extents = self.volume.extents(Ino(ino));
        let at = |block: u64| {
            extents
                .iter()
                .find(|e| e.file.0 <= block && block < e.end().0)
                .map(|e| (e.lun.0 + block - e.file.0, e))
        };
        let mut runs = Vec::new();
        let mut tokens = Vec::new();
        for block in from..from + len {
            let token = self.next_token;
            self.next_token += 1;
            tokens.push((block, token));
            match at(block) {
                Some((lun, extent)) if !extent.shared => {
                    self.disk.insert(lun, token);
                    runs.push((block, lun, 1));
                }
                _ => {
                    if self.reserve.is_empty() {
                        let Ok(Answer::Runs(granted)) = self.ask(Operation::Reserve { want: 16 }) else {
                            return;
                        };
                        for run in granted {
                            for lun in run.start.0..run.end().0 {
                                assert!(self.reserve.insert(lun), "block {lun} granted twice");
                            }
                        }
                    }
                    let lun = self.reserve.pop_first().unwrap();
                    self.disk.insert(lun, token);
                    runs.push((block, lun, 1));
                }
            }
        }
        let answer = self.expect(commit(Ino(ino), &runs), None);
        assert!(matches!(answer, Some(Answer::Version(_))));
        let node = self.nodes.get_mut(&ino).unwrap();
        for (block, token) in tokens {
            node.blocks.insert(block, Some(token));
        }
        node.size = node.size.max((from + len) * 4096);
    }

    fn truncate(&mut self, ino: u64, size: u64) {
        self.expect(Operation::Truncate { file: owned(Ino(ino)), size, clear_set_id: false, now: NOW }, None);
        let node = self.nodes.get_mut(&ino).unwrap();
        node.size = size;
        node.blocks.retain(|block, _| *block < size.div_ceil(4096));
    }

    fn allocate(&mut self, ino: u64, from: u64, to: u64, how: Allocation) {
        let (first, end) = (FileBlock(from), FileBlock(to));
        let operation = Operation::Allocate {
            file: owned(Ino(ino)),
            from: first,
            to: end,
            how,
            size: Some(to * 4096),
            now: NOW,
        };
        if self.ask(operation).is_err() {
            return;
        }
        let node = self.nodes.get_mut(&ino).unwrap();
        node.size = node.size.max(to * 4096);
        for block in from..to {
            match how {
                Allocation::Punch => drop(node.blocks.remove(&block)),
                Allocation::Zero => drop(node.blocks.insert(block, None)),
                Allocation::Allocate => drop(node.blocks.entry(block).or_insert(None)),
            }
        }
    }

    fn clone_range(&mut self, source: u64, from: u64, target: u64, to: u64, len: u64) {
        let overlaps = source == target && from < to + len && to < from + len;
        let operation = Operation::Clone {
            source: owned(Ino(source)),
            from: FileBlock(from),
            target: owned(Ino(target)),
            to: FileBlock(to),
            len,
            size: Some((to + len) * 4096),
            now: NOW,
        };
        if self.expect(operation, overlaps.then(|| Refusal::Invalid(String::new()))).is_none() {
            return;
        }
        let tokens: Vec<_> =
            (0..len).map(|i| self.nodes[&source].blocks.get(&(from + i)).copied().flatten()).collect();
        let node = self.nodes.get_mut(&target).unwrap();
        for (block, token) in (to..).zip(tokens) {
            match token {
                Some(token) => drop(node.blocks.insert(block, Some(token))),
                None => drop(node.blocks.remove(&block)),
            }
        }
        node.size = node.size.max((to + len) * 4096);
    }

    fn xattr(&mut self, ino: u64, name: &str, value: u8, mode: XattrMode) {
        let exists = self.nodes[&ino].xattrs.contains_key(name);
        let refusal = match mode {
            XattrMode::Create if exists => Some(Refusal::Exists),
            XattrMode::Replace if !exists => Some(Refusal::NoData),
            _ => None,
        };
        let value = vec![value; usize::from(value)];
        let operation = Operation::SetXattr {
            ino: Ino(ino),
            name: name.into(),
            value: value.clone(),
            mode,
            clear_sgid: false,
            now: NOW,
        };
        if self.expect(operation, refusal).is_some() {
            self.nodes.get_mut(&ino).unwrap().xattrs.insert(name.to_owned(), value);
        }
    }

    fn open_or_close(&mut self, by: u8) {
        let Some(ino) = self.pick(by, |_| true) else { return };
        let node = self.nodes.get_mut(&ino).unwrap();
        node.open = !node.open;
        let (open, gone) = (node.open, node.nlink == 0);
        if open {
            assert!(self.volume.ask(Operation::Open { ino: Ino(ino), write: false }).is_ok());
        } else {
            self.volume.done(close(Ino(ino)));
            if gone {
                self.nodes.remove(&ino);
                // Until the reclaimer has come by, its blocks are in use: they may be shared with others.
                self.volume.coordinator.reclaim().unwrap();
            }
        }
    }

    /// Another coordinator on the same store. What was open is closed; a slot answers as before.
    fn restart(&mut self, new_session: bool) {
        if new_session {
            self.volume.next_session();
            self.reserve.clear();
        } else {
            self.volume.restart();
            if let Some((head, operation, reply)) = self.last.take().filter(|(_, _, reply)| reply.is_ok()) {
                assert_eq!(self.volume.ask_as(head, operation), reply, "the same answer after a restart");
            }
        }
        self.last = None;
        self.nodes.values_mut().for_each(|node| node.open = false);
        self.nodes.retain(|_, node| node.nlink > 0);
        self.volume.coordinator.reclaim().unwrap();
    }

    fn step(&mut self, (what, a, b, c, d): Step) {
        let (one, two) = (self.directory(a), self.directory(c));
        let (name, other) = (NAMES[usize::from(b) % 5], NAMES[usize::from(d) % 5]);
        let (from, len) = (u64::from(b) % FILE_BLOCKS, u64::from(c) % 8 + 1);
        let how = [Allocation::Allocate, Allocation::Punch, Allocation::Zero][usize::from(d) % 3];
        let set = [XattrMode::Set, XattrMode::Create, XattrMode::Replace][usize::from(d) % 3];
        match (what % 20, self.file(a)) {
            (0..=2, _) => self.create(one, name, &Created::File),
            (3 | 4, _) => self.create(one, name, &Created::Directory),
            (5, _) => self.create(one, name, &Created::Symlink(b"t".to_vec())),
            (6, _) => self.remove(one, name, false),
            (7, _) => self.remove(one, name, true),
            (8, _) => self.rename((one, name), (two, other), RenameMode::Replace),
            (9, _) => self.rename((one, name), (two, other), RenameMode::Exchange),
            (10, _) => self.rename((one, name), (two, other), RenameMode::NoReplace),
            (11, _) => self.link(a, two, other),
            (12, Some(file)) => self.xattr(file, &format!("user.{name}"), c, set),
            (13, _) => self.open_or_close(a),
            (14..=16, Some(file)) => self.write(file, from, len),
            (17, Some(file)) => self.truncate(file, u64::from(b) * 500),
            (18, Some(file)) => self.allocate(file, from, from + len, how),
            (19, Some(file)) => {
                if let Some(target) = self.file(c) {
                    self.clone_range(file, from, target, u64::from(d) % FILE_BLOCKS, len);
                }
            }
            _ => {}
        }
    }

    /// Everything is as the model says.
    fn compare(&self) {
        assert_clean(&self.volume, BLOCKS);
        let mut uses: HashMap<u64, u64> = HashMap::new();
        let layouts: Vec<(u64, Vec<Extent>)> = self
            .nodes
            .iter()
            .filter(|(_, node)| !node.directory && node.mode != 0o777)
            .map(|(ino, _)| (*ino, self.volume.extents(Ino(*ino))))
            .collect();
        for extent in layouts.iter().flat_map(|(_, extents)| extents) {
            (extent.lun.0..extent.run().end().0).for_each(|lun| *uses.entry(lun).or_default() += 1);
        }
        for (ino, extents) in layouts {
            let node = &self.nodes[&ino];
            let mut found = BTreeMap::new();
            for extent in &extents {
                for i in 0..extent.len {
                    let lun = extent.lun.0 + i;
                    let token = (extent.state == ExtentState::Written).then(|| self.disk[&lun]);
                    found.insert(extent.file.0 + i, token);
                    assert_eq!(extent.shared, uses[&lun] > 1, "LUN block {lun} of {ino}");
                }
            }
            assert_eq!(found, node.blocks, "the blocks of {ino}");
        }
        for (ino, node) in &self.nodes {
            let attr = self.volume.attr(Ino(*ino));
            assert_eq!((attr.nlink, attr.mode), (node.nlink, node.mode), "{ino}");
            if !node.directory {
                assert_eq!((attr.size, attr.blocks), (node.size, node.blocks.len() as u64), "{ino}");
                let list: Vec<u8> =
                    node.xattrs.keys().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
                assert_eq!(self.volume.ask(Operation::ListXattr { ino: Ino(*ino) }), Ok(Answer::Bytes(list)));
                continue;
            }
            assert_eq!(self.volume.entry(Operation::Parent { ino: Ino(*ino) }).ino.0, node.parent);
            let part =
                Operation::ReadDirectory { ino: Ino(*ino), after: 0, budget: 1 << 16, attributes: false };
            let Ok(Answer::Directory { entries, .. }) = self.volume.ask(part) else { panic!() };
            let found: BTreeMap<String, u64> = entries
                .into_iter()
                .map(|entry| (String::from_utf8(entry.name).unwrap(), entry.ino.0))
                .collect();
            assert_eq!(found, node.children, "directory {ino}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_do_what_the_model_does(
        steps in prop::collection::vec(any::<Step>(), 1..250),
        restarts in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..4),
    ) {
        let mut model = Model::new();
        let restarts: HashMap<usize, bool> =
            restarts.iter().map(|(at, session)| (at.index(steps.len()), *session)).collect();
        for (at, step) in steps.iter().enumerate() {
            model.step(*step);
            if let Some(new_session) = restarts.get(&at) {
                model.restart(*new_session);
                model.compare();
            }
        }
        model.compare();
        model.volume.coordinator.reclaim().unwrap();
        model.compare();
    }
}
