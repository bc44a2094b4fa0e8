//! The question how much space there is, which also shows whether the coordinator answers at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::node::Node;
use crate::service::FileService;
use crate::types::SpaceReport;

/// How long the coordinator may take before the status goes without its answer.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    /// Since when a question is under way. There is one at a time, however often the status is asked for.
    asking: Option<Instant>,
    last: Option<SpaceReport>,
}

/// Asks, one question at a time.
#[derive(Debug, Default)]
pub(super) struct Inquiry {
    shared: Arc<(Mutex<State>, Condvar)>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Found {
    /// The last answer that came.
    pub space: Option<SpaceReport>,
    /// For how long the question that is under way has not been answered.
    pub silent: Option<Duration>,
}

impl Inquiry {
    pub(super) fn ask(&self, node: &Node) -> Found {
        let (state, answered) = &*self.shared;
        let is_under_way = {
            let mut state = state.lock();
            let is_under_way = state.asking.is_some();
            state.asking.get_or_insert_with(Instant::now);
            is_under_way
        };
        if !is_under_way {
            let shared = Arc::clone(&self.shared);
            node.space(Box::new(move |result| {
                let (state, answered) = &*shared;
                let mut state = state.lock();
                state.asking = None;
                state.last = result.ok().or(state.last);
                answered.notify_all();
            }));
        }
        let mut state = state.lock();
        if state.asking.is_some() {
            // It says by `asking` whether it came in time.
            answered.wait_for(&mut state, PATIENCE);
        }
        Found { space: state.last, silent: state.asking.map(|since| since.elapsed()) }
    }
}
