//! The table against the locks of the kernel that runs the test, on a file in memory: what is granted, what is
//! refused, and what a test shows. (OFD locks have the ranges of POSIX locks, without a process per owner.)

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use proptest::prelude::*;

use super::*;
use crate::ids::ClientId;

const FILE: u64 = 1;

/// Several open file descriptions of one file.
struct Kernel {
    files: Vec<File>,
}

impl Kernel {
    fn new(count: usize) -> Self {
        // SAFETY: the name is a C string; the descriptor that comes back is owned by the `File` alone.
        let first = unsafe {
            let fd = libc::memfd_create(c"locks".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
            File::from_raw_fd(fd)
        };
        let path = format!("/proc/self/fd/{}", first.as_raw_fd());
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        Self { files: (0..count).map(|_| open()).collect() }
    }

    fn fcntl(&self, owner: usize, command: i32, lock: &mut libc::flock) -> std::io::Result<()> {
        // SAFETY: `lock` is a valid, writable struct flock for the duration of the call.
        let status = unsafe { libc::fcntl(self.files[owner].as_raw_fd(), command, std::ptr::from_mut(lock)) };
        if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    fn set(&self, owner: usize, kind: i32, start: u64, end: u64) -> bool {
        answer(self.fcntl(owner, libc::F_OFD_SETLK, &mut record(kind, start, end)))
    }

    /// Start and length of a conflicting lock, and whether it is exclusive.
    fn test(&self, owner: usize, kind: i32, start: u64, end: u64) -> Option<(u64, u64, bool)> {
        let mut lock = record(kind, start, end);
        self.fcntl(owner, libc::F_OFD_GETLK, &mut lock).unwrap();
        let start = u64::try_from(lock.l_start).unwrap();
        let len = u64::try_from(lock.l_len).unwrap();
        (i32::from(lock.l_type) != libc::F_UNLCK)
            .then(|| (start, len, i32::from(lock.l_type) == libc::F_WRLCK))
    }

    fn flock(&self, owner: usize, operation: i32) -> bool {
        // SAFETY: the descriptor is open; flock takes no pointer.
        let status = unsafe { libc::flock(self.files[owner].as_raw_fd(), operation | libc::LOCK_NB) };
        answer(if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) })
    }
}

fn record(kind: i32, start: u64, end: u64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap(),
        l_start: i64::try_from(start).unwrap(),
        l_len: i64::try_from(end - start + 1).unwrap(),
        l_pid: 0,
    }
}

fn answer(result: std::io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    }
}

fn request(kind: LockKind, owner: usize, exclusive: bool, start: u64, end: u64) -> LockRequest {
    let owner = LockOwner { client: ClientId(1), kind, id: owner as u64 };
    let mode = if exclusive { LockMode::Exclusive } else { LockMode::Shared };
    LockRequest { owner, pid: 1, mode, range: ByteRange::new(start, end).unwrap() }
}

fn set(table: &mut LockTable, request: LockRequest) -> bool {
    match table.set(&FILE, request, false, &mut Vec::new()) {
        LockOutcome::Granted(_) => true,
        LockOutcome::Refused(LockError::WouldBlock(_)) => false,
        other => panic!("{request:?}: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn record_locks_are_those_of_linux(
        steps in prop::collection::vec((0_usize..3, 0_u8..3, 0_u64..24, 0_u64..8), 1..60),
    ) {
        let kernel = Kernel::new(3);
        let mut table = LockTable::new(LockLimits::default());
        for (owner, what, start, extra) in steps {
            let end = start + extra;
            let lock = request(LockKind::Ofd, owner, what == 1, start, end);
            if what == 2 {
                prop_assert!(kernel.set(owner, libc::F_UNLCK, start, end));
                table.unlock(&FILE, lock.owner, lock.range, None, &mut Vec::new()).unwrap();
            } else {
                let kind = if what == 1 { libc::F_WRLCK } else { libc::F_RDLCK };
                prop_assert_eq!(set(&mut table, lock), kernel.set(owner, kind, start, end), "{:?}", lock);
            }
            // Of several shared locks on a byte the kernel shows any; an exclusive one is alone and seen exactly.
            for (observer, byte) in (0..3).flat_map(|observer| (0..32).map(move |byte| (observer, byte))) {
                let ours = table.test(&FILE, request(LockKind::Ofd, observer, true, byte, byte));
                let theirs = kernel.test(observer, libc::F_WRLCK, byte, byte);
                prop_assert_eq!(ours.is_some(), theirs.is_some(), "byte {} for {}", byte, observer);
                if let (Some(ours), Some((start, len, exclusive))) = (ours, theirs) {
                    prop_assert_eq!(ours.mode == LockMode::Exclusive, exclusive);
                    if exclusive {
                        let range = ByteRange::new(start, start + len - 1).unwrap();
                        prop_assert_eq!(ours.range, range, "neighbours are merged");
                    }
                }
            }
        }
    }

    #[test]
    fn flocks_are_those_of_linux(steps in prop::collection::vec((0_usize..3, 0_u8..3), 1..80)) {
        let kernel = Kernel::new(3);
        let mut table = LockTable::new(LockLimits::default());
        for (owner, what) in steps {
            let lock = request(LockKind::Flock, owner, what == 1, 0, 0);
            let operation = [libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN][usize::from(what)];
            let theirs = kernel.flock(owner, operation);
            if what == 2 {
                table.unlock(&FILE, lock.owner, lock.range, None, &mut Vec::new()).unwrap();
                prop_assert!(theirs);
            } else {
                prop_assert_eq!(set(&mut table, lock), theirs, "{:?}", lock);
            }
        }
    }
}
