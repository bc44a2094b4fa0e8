//! The requests of one connection that wait for their replies, found by cookie.

use lockd::clock::BootTime;

use crate::buffer::Loan;
use crate::nbd::reply::ProtocolError;
use crate::paths::request::Request;

/// The length of a simple reply without its data.
const SIMPLE_HEAD: usize = 16;
/// Requests in flight at most, on one connection.
pub const WINDOW: usize = 128;
/// Bits of a cookie that name the place; the others tell its users apart.
const INDEX_BITS: u32 = 16;

/// A request in flight.
#[derive(Debug)]
pub struct Entry {
    /// The request itself.
    pub request: Request,
    /// When it was sent.
    pub sent: BootTime,
    /// Bytes of a read that have come.
    pub received: u64,
    /// The first error that has come.
    pub error: Option<u32>,
    /// The pages of its data, if those were sent and no copy.
    pub loan: Option<Loan>,
}

#[derive(Debug, Default)]
struct Place {
    generation: u64,
    entry: Option<Entry>,
}

/// The places of one connection.
#[derive(Debug, Default)]
pub struct Flight {
    places: Vec<Place>,
    free: Vec<usize>,
    closed: bool,
    /// Bytes of all simple replies that are to come.
    expected: usize,
    /// How many submitters wait for room.
    pub waiting: usize,
}

impl Flight {
    /// How many requests are in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// About how many of the requests in flight have been answered when `waiting` bytes can be received.
    #[must_use]
    pub fn answered(&self, waiting: usize) -> usize {
        (self.len() * waiting).checked_div(self.expected).map_or(0, |answered| answered.min(self.len()))
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a request finds room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.places.len() < WINDOW
    }

    /// Whether the connection is broken: nothing is taken in any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes a request in, and returns its cookie. There must be room.
    pub fn insert(&mut self, request: Request, sent: BootTime, loan: Option<Loan>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() - 1
        });
        self.expected += reply_len(&request);
        let place = &mut self.places[index];
        place.generation += 1;
        place.entry = Some(Entry { request, sent, received: 0, error: None, loan });
        place.generation << INDEX_BITS | index as u64
    }

    /// Takes out the request of a reply. Its place is free when `last`, otherwise it comes back by
    /// [`Flight::put_back`].
    pub fn take(&mut self, cookie: u64, last: bool) -> Result<Entry, ProtocolError> {
        let index = index_of(cookie);
        let place = self.places.get_mut(index).filter(|place| place.generation == cookie >> INDEX_BITS);
        let entry = place.and_then(|place| place.entry.take()).ok_or(ProtocolError::Cookie(cookie))?;
        if last {
            self.expected -= reply_len(&entry.request);
            self.free.push(index);
        }
        Ok(entry)
    }

    /// How many bytes the reply of `cookie` brings if it is a simple one; zero if there is no such request.
    #[must_use]
    pub fn data_len(&self, cookie: u64) -> usize {
        let place =
            self.places.get(index_of(cookie)).filter(|place| place.generation == cookie >> INDEX_BITS);
        place.and_then(|place| place.entry.as_ref()).map_or(0, |entry| entry.request.read_len())
    }

    /// Puts a request back to wait for the rest of its reply. If the connection was closed meanwhile, it returns.
    pub fn put_back(&mut self, cookie: u64, entry: Entry) -> Result<(), Box<Entry>> {
        match self.places.get_mut(index_of(cookie)) {
            Some(place) if !self.closed => {
                place.entry = Some(entry);
                Ok(())
            }
            _ => Err(Box::new(entry)),
        }
    }

    /// When the oldest request was sent.
    #[must_use]
    pub fn oldest(&self) -> Option<BootTime> {
        self.places.iter().filter_map(|place| place.entry.as_ref().map(|entry| entry.sent)).min()
    }

    /// Takes nothing in any more, and returns all that is in flight, oldest first. What was on loan is given up.
    pub fn close(&mut self) -> Vec<Request> {
        self.closed = true;
        self.expected = 0;
        let mut entries: Vec<_> = self.places.iter_mut().filter_map(|place| place.entry.take()).collect();
        entries.sort_by_key(|entry| entry.sent);
        entries.into_iter().map(|entry| entry.request).collect()
    }
}

/// The length of a request's simple reply, in bytes.
fn reply_len(request: &Request) -> usize {
    SIMPLE_HEAD + request.read_len()
}

fn index_of(cookie: u64) -> usize {
    usize::try_from(cookie & ((1 << INDEX_BITS) - 1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;
    use crate::paths::request::Command;

    fn read(len: usize) -> Request {
        Request::new(Command::Read(0, Pool::default().take(len), Box::new(|_, _| ())), BootTime(0))
    }

    fn trim() -> Request {
        Request::new(Command::Trim(0..1, Box::new(|_| ())), BootTime(0))
    }

    #[test]
    fn what_waits_tells_how_much_has_been_answered() {
        let mut flight = Flight::default();
        assert_eq!(flight.answered(100), 0, "nothing is in flight");
        let reads: Vec<u64> = (0..4).map(|_| flight.insert(read(4096), BootTime(0), None)).collect();
        let whole = SIMPLE_HEAD + 4096;
        assert_eq!([0, whole - 1, whole, 3 * whole].map(|waiting| flight.answered(waiting)), [0, 0, 1, 3]);
        assert_eq!(flight.answered(10 * whole), 4, "no more than there are");

        // A reply in several parts is one until its last.
        let entry = flight.take(reads[0], false).unwrap();
        assert_eq!(flight.answered(4 * whole), 4);
        flight.put_back(reads[0], entry).unwrap();
        for cookie in reads {
            flight.take(cookie, true).unwrap();
        }
        let trims: Vec<u64> = (0..2).map(|_| flight.insert(trim(), BootTime(0), None)).collect();
        assert_eq!(flight.answered(SIMPLE_HEAD), 1);
        flight.take(trims[0], true).unwrap();
        assert_eq!(flight.answered(SIMPLE_HEAD), 1);
        flight.close();
        assert_eq!(flight.answered(SIMPLE_HEAD), 0);
    }
}
