//! All rows that can still be read, and which pages cannot.

use super::super::area::AreaError;
use super::header::{Header, PAGE};
use super::node::{Child, Node, Widths};
use super::table::Definition;

/// Levels of a tree at most: far more than any has.
const DEPTH_MAX: usize = 64;
/// Bad pages that are told at most; there may be more.
pub const BAD_MAX: usize = 10_000;
/// The longest page that is read, in bytes.
const PAGE_MAX: u64 = 64 << 20;
const TABLES: Widths = Widths { key: None, value: None };

/// A row that could be read.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The name of its table.
    pub table: &'a str,
    /// The key, as the store keeps it.
    pub key: &'a [u8],
    /// The value, as the store keeps it.
    pub value: &'a [u8],
}

/// A page that is not what it must be, or cannot be read, with everything below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadPage {
    /// The table that has it; none: the list of tables, so whole tables may be lost.
    pub table: Option<String>,
    /// Where it is, in bytes of the area.
    pub at: u64,
    /// Rows with greater keys than this one may be lost; none: from the first on.
    pub after: Option<Vec<u8>>,
    /// Up to and with this one; none: to the last.
    pub to: Option<Vec<u8>>,
}

/// How a walk went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Walk {
    /// The bad pages, the first [`BAD_MAX`].
    pub bad: Vec<BadPage>,
    /// Whether the header's slot in force was damaged: what was read is the commit before, as far as it is left.
    pub earlier: bool,
    /// Rows that were read.
    pub rows: u64,
}

/// Reads bytes of the area at an offset.
pub(in crate::disk) type ReadBytes<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), AreaError> + 'a;
/// Is given each row of a tree: key and value.
type OnPair<'a> = dyn FnMut(&mut Walker<'_>, &[u8], &[u8]) + 'a;

/// Walks over the store.
pub(in crate::disk) struct Walker<'a> {
    read: &'a mut ReadBytes<'a>,
    on_row: &'a mut dyn FnMut(Row<'_>),
    header: Header,
    found: Walk,
}

/// The part of a tree below a reference.
struct Below {
    child: Child,
    widths: Widths,
    depth: usize,
    after: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
}

/// Reads all rows of the store of which `read` reads bytes. Nothing if there is no header any more.
pub(in crate::disk) fn walk(read: &mut ReadBytes<'_>, on_row: &mut dyn FnMut(Row<'_>)) -> Option<Walk> {
    let mut first = vec![0; usize::try_from(PAGE).unwrap_or(0)];
    read(0, &mut first).ok()?;
    let in_force = Header::decode(&first);
    let header = in_force.or_else(|| Header::decode_earlier(&first))?;
    let found = Walk { earlier: in_force.is_none(), ..Walk::default() };
    let mut walker = Walker { read, on_row, header, found };
    let mut tables: Vec<(String, Definition)> = Vec::new();
    if let Some(root) = header.tables {
        let below = Below { child: root, widths: TABLES, depth: 0, after: None, to: None };
        walker.tree(None, below, &mut |_, name, value| {
            if let Some(definition) = Definition::decode(value) {
                tables.push((String::from_utf8_lossy(name).into_owned(), definition));
            }
        });
    }
    for (name, definition) in tables {
        let Some(root) = definition.root else { continue };
        let below = Below { child: root, widths: definition.widths, depth: 0, after: None, to: None };
        walker.tree(Some(&name), below, &mut |walker, key, value| {
            walker.found.rows += 1;
            (walker.on_row)(Row { table: &name, key, value });
        });
    }
    Some(walker.found)
}

impl Walker<'_> {
    fn tree(&mut self, table: Option<&str>, below: Below, on_row: &mut OnPair<'_>) {
        let Below { child, widths, depth, after, to } = below;
        let place = self.header.place(child.page).filter(|place| place.end - place.start <= PAGE_MAX);
        let mut bytes = Vec::new();
        let node = place.clone().filter(|_| depth < DEPTH_MAX).and_then(|place| {
            bytes = vec![0; usize::try_from(place.end - place.start).ok()?];
            (self.read)(place.start, &mut bytes).ok()?;
            Node::check(&bytes, widths, child.sum)
        });
        match node {
            Some(Node::Leaf(leaf)) => leaf.rows().for_each(|(key, value)| on_row(self, key, value)),
            Some(Node::Branch(branch)) => {
                for n in 0..branch.len() {
                    let Some(child) = branch.child(n) else { continue };
                    let key = |n: usize| branch.key(n).map(<[u8]>::to_vec);
                    let after = if n == 0 { after.clone() } else { key(n - 1) };
                    let to = if n + 1 == branch.len() { to.clone() } else { key(n) };
                    self.tree(table, Below { child, widths, depth: depth + 1, after, to }, on_row);
                }
            }
            None if self.found.bad.len() < BAD_MAX => {
                let at = place.map_or(0, |place| place.start);
                self.found.bad.push(BadPage { table: table.map(str::to_owned), at, after, to });
            }
            None => {}
        }
    }
}
