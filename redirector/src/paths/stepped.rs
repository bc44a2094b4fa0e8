//! Paths without threads, for whoever has a time of its own (a simulation): what the threads of a LUN's paths do is a step that
//! somebody else takes.

use std::sync::Arc;

use crate::open::{OpenError, OpenOptions};
use crate::paths::PathSet;
use crate::paths::way::{self, Way};

impl PathSet {
    /// As [`PathSet::open`], without threads: [`PathSet::step`] is to be called twice a second at least, and every few
    /// milliseconds while something is wrong. The links' requests are completed by whoever has made the links, and what
    /// recognises the LUN (the first read by each link) before its submission returns.
    ///
    /// # Errors
    /// As [`PathSet::open`].
    pub fn stepped(ways: Vec<Arc<dyn Way>>, options: &OpenOptions) -> Result<Self, OpenError> {
        Self::connect(ways, options)
    }

    /// Asks the paths that are to be asked now, and does one round of what looks after them.
    pub fn step(&self) {
        way::while_completing(|| {
            for index in 0..self.traffic.ways.len() {
                self.traffic.probe_if_due(index);
            }
            self.traffic.look_after();
        });
    }

    /// Whether a path is in use and no ghost lives: nothing is wrong.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.traffic.is_calm()
    }
}
