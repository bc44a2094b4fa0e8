//! Reading and writing, in all the ways there are.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use redirector::buffer::Pool;

use crate::mounted::{Mounted, checked, errno};

fn open(path: &Path, flags: i32) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags)
        .open(path)
        .unwrap()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|place| (place / 7 + place % 251) as u8 ^ seed).collect()
}

#[test]
fn data_of_all_sizes_comes_back() {
    let mounted = Mounted::new();
    let file = open(&mounted.path("file"), 0);
    for len in [1, 4095, 4096, 4097, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 3 << 20] {
        let data = pattern(len, len as u8);
        file.write_all_at(&data, 1234).unwrap();
        // Past the page cache, so that it is read back.
        // SAFETY: the descriptor is open.
        checked(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }).unwrap();
        let mut read = vec![0; len];
        file.read_exact_at(&mut read, 1234).unwrap();
        assert!(read == data, "{len} bytes");
    }
    assert_eq!(file.metadata().unwrap().len(), 1234 + (3 << 20));
    let mut beyond = [0; 16];
    assert_eq!(file.read_at(&mut beyond, 1234 + (3 << 20)).unwrap(), 0);
    assert_eq!(file.read_at(&mut beyond, 1230 + (3 << 20)).unwrap(), 4);
    file.sync_all().unwrap();
    file.sync_data().unwrap();
}

#[test]
fn direct_writes_arrive_aligned_and_whole() {
    let mounted = Mounted::new();
    let file = open(&mounted.path("file"), libc::O_DIRECT);
    let pool = Pool::default();
    for (len, offset) in [(4096, 0), (65_536, 8192), (1 << 20, 1 << 20)] {
        let mut data = pool.take(len);
        data.copy_from_slice(&pattern(len, 3));
        file.write_all_at(&data, offset).unwrap();
        let mut read = pool.take(len);
        file.read_exact_at(&mut read, offset).unwrap();
        assert!(read[..] == data[..]);
    }
    let seen = mounted.memory.seen().writes;
    let sizes: Vec<_> = seen.iter().map(|(_, len, _)| *len).collect();
    assert_eq!(sizes, [4096, 65_536, 1 << 20], "each in one request");
    assert!(seen.iter().all(|(_, _, aligned)| *aligned));
    assert!(seen.iter().all(|(mode, ..)| !mode.append && !mode.sync && !mode.from_cache));
}

#[test]
fn direct_io_need_not_be_aligned() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let file = open(&path, libc::O_DIRECT);
    let data = pattern(10_001, 9);
    file.write_all_at(&data, 77).unwrap();
    let mut read = vec![0; 10_001];
    file.read_exact_at(&mut read, 77).unwrap();
    assert!(read == data);
}

#[test]
fn direct_and_buffered_see_each_other() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let (buffered, direct) = (open(&path, 0), open(&path, libc::O_DIRECT));
    buffered.write_all_at(&[1; 8192], 0).unwrap();
    let mut read = [0; 8192];
    direct.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, [1; 8192]);
    direct.write_all_at(&[2; 8192], 0).unwrap();
    buffered.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, [2; 8192], "pages of what was written directly are dropped");
    assert_eq!(buffered.metadata().unwrap().len(), 8192);
}

#[test]
fn appends_go_to_the_end_whoever_writes() {
    let mounted = Mounted::new();
    let path = mounted.path("log");
    let append = || OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let (mut first, mut second) = (append(), append());
    for number in 0..50 {
        writeln!(first, "first {number}").unwrap();
        writeln!(second, "second {number}").unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    let expected: String = (0..50).map(|number| format!("first {number}\nsecond {number}\n")).collect();
    assert_eq!(text, expected);
    assert!(mounted.memory.seen().writes.iter().all(|(mode, ..)| mode.append));
}

#[test]
fn synchronous_writes_say_so() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    for flags in [libc::O_DSYNC, libc::O_SYNC, libc::O_DSYNC | libc::O_DIRECT] {
        open(&path, flags).write_all_at(&[1; 4096], 0).unwrap();
    }
    let seen = mounted.memory.seen().writes;
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|(mode, ..)| mode.sync));
}

#[test]
fn shared_mappings_are_written_back() {
    let mounted = Mounted::new();
    let path = mounted.path("mapped");
    for (flags, len) in [(0, 3 * 4096), (libc::O_DIRECT, 2 * 4096)] {
        let file = open(&path, flags);
        file.set_len(len as u64).unwrap();
        let (read, write) = (libc::PROT_READ, libc::PROT_WRITE);
        // SAFETY: a fresh mapping of an open file, at a place that the kernel chooses.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, read | write, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: the mapping is `len` bytes long and nobody else uses it.
        let mapped = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), len) };
        mapped[4096..4100].copy_from_slice(b"mmap");
        // SAFETY: exactly the mapping.
        checked(unsafe { libc::msync(start, len, libc::MS_SYNC) }).unwrap();
        // SAFETY: exactly the mapping, not used any more.
        checked(unsafe { libc::munmap(start, len) }).unwrap();
        let mut back = [0; 4];
        open(&path, libc::O_DIRECT).read_exact_at(&mut back, 4096).unwrap();
        assert_eq!(&back, b"mmap");
        file.set_len(0).unwrap();
    }
    assert!(mounted.memory.seen().writes.iter().any(|(mode, ..)| mode.from_cache && !mode.append));
}

#[test]
fn truncation_by_all_ways() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, pattern(10_000, 1)).unwrap();
    let file = open(&path, 0);
    file.set_len(5000).unwrap();
    file.set_len(9000).unwrap();
    let data = fs::read(&path).unwrap();
    assert_eq!(data[..5000], pattern(10_000, 1)[..5000]);
    assert!(data[5000..].iter().all(|byte| *byte == 0) && data.len() == 9000);
    drop(OpenOptions::new().write(true).truncate(true).open(&path).unwrap());
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn allocation_holes_and_seeking() {
    let mounted = Mounted::new();
    let file = open(&mounted.path("file"), 0);
    // SAFETY: the descriptor is open.
    let allocate =
        |mode, offset, len| checked(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) });
    // SAFETY: the descriptor is open.
    let seek = |offset, whence| checked(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) });
    allocate(libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 16).unwrap();
    assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().blocks()), (0, 128));
    allocate(0, 0, 1 << 16).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 16);
    file.write_all_at(&[7; 1 << 16], 0).unwrap();
    allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 4096, 8192).unwrap();
    allocate(libc::FALLOC_FL_ZERO_RANGE, 20_000, 100).unwrap();
    let mut data = vec![0; 1 << 16];
    file.read_exact_at(&mut data, 0).unwrap();
    let zeros: Vec<_> = (0..data.len()).filter(|place| data[*place] == 0).collect();
    assert_eq!(zeros, (4096..12_288).chain(20_000..20_100).collect::<Vec<_>>());
    assert_eq!(seek(0, libc::SEEK_HOLE).unwrap(), 4096);
    assert_eq!(seek(4096, libc::SEEK_DATA).unwrap(), 12_288);
    assert_eq!(seek(12_288, libc::SEEK_HOLE).unwrap(), 1 << 16);
    assert_eq!(errno(seek(1 << 16, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(seek(0, libc::SEEK_END).unwrap(), 1 << 16);
    assert_eq!(errno(allocate(libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)), libc::EOPNOTSUPP);
    assert_eq!(errno(allocate(libc::FALLOC_FL_INSERT_RANGE, 0, 4096)), libc::EOPNOTSUPP);
}

#[test]
fn ranges_are_copied_by_the_file_system() {
    let mounted = Mounted::new();
    let (mut from, to) = (open(&mounted.path("from"), 0), open(&mounted.path("to"), 0));
    from.write_all(&pattern(100_000, 5)).unwrap();
    from.seek(SeekFrom::Start(0)).unwrap();
    let writes = mounted.memory.seen().writes.len();
    let (mut from_offset, mut to_offset) = (10_i64, 4096_i64);
    // SAFETY: both descriptors are open, and the offsets are valid for the call.
    let copied = checked(unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            &raw mut from_offset,
            to.as_raw_fd(),
            &raw mut to_offset,
            50_000,
            0,
        )
    } as i64);
    assert_eq!(copied.unwrap(), 50_000);
    let mut data = vec![0; 50_000];
    to.read_exact_at(&mut data, 4096).unwrap();
    assert!(data == pattern(100_000, 5)[10..50_010]);
    assert_eq!(mounted.memory.seen().writes.len(), writes, "no data came by");
    const FICLONE: libc::c_ulong = 0x4004_9409;
    // SAFETY: both descriptors are open.
    let cloned = checked(unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) });
    assert_eq!(errno(cloned), libc::EOPNOTSUPP, "the kernel does not carry FICLONE through FUSE");
}

#[test]
fn large_sequential_reading_is_read_ahead() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let data = pattern(8 << 20, 2);
    fs::write(&path, &data).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let mut read = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut read).unwrap();
    assert!(read == data);
}

#[test]
fn what_there_is_not_is_refused() {
    let mounted = Mounted::new();
    let file = open(&mounted.path("file"), 0);
    const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
    let mut flags = 0_i64;
    // SAFETY: the descriptor is open, and there is room for the answer.
    let status = checked(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) });
    assert_eq!(errno(status), libc::ENOTTY);
    // SAFETY: the descriptor is open.
    checked(unsafe { libc::syncfs(file.as_raw_fd()) }).unwrap();
    // SAFETY: all zeros is a valid poll set of one.
    let mut poll: libc::pollfd = unsafe { std::mem::zeroed() };
    (poll.fd, poll.events) = (file.as_raw_fd(), libc::POLLIN);
    // SAFETY: one entry.
    assert_eq!(checked(unsafe { libc::poll(&raw mut poll, 1, 0) }).unwrap(), 1, "always ready");
}

#[test]
fn a_program_that_runs_is_not_written_to() {
    let mounted = Mounted::new();
    let path = mounted.path("program");
    fs::copy("/bin/sleep", &path).unwrap();
    let len = fs::metadata(&path).unwrap().len();
    let mut running = std::process::Command::new(&path).arg("60").spawn().unwrap();
    for flags in
        [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_WRONLY | libc::O_TRUNC]
    {
        let name = crate::mounted::terminated(&path);
        // SAFETY: the path is a NUL-terminated string.
        let opened = checked(unsafe { libc::open(name.as_ptr(), flags) });
        assert_eq!(errno(opened), libc::ETXTBSY, "{flags:#x}");
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), len);
    assert!(running.try_wait().unwrap().is_none(), "it still runs");
    running.kill().unwrap();
    running.wait().unwrap();
}
