//! Locks between processes, between open files, and their waiting.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::thread::JoinHandleExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::mounted::{Mounted, checked, errno, flock, record_lock};

const OFD_SETLK: i32 = libc::F_OFD_SETLK;
const OFD_SETLKW: i32 = libc::F_OFD_SETLKW;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

extern "C" fn on_signal(_signal: i32) {}

/// A signal that interrupts system calls and does nothing else.
fn catch(signal: i32) {
    // SAFETY: all zeros is a valid action: no flags, so that calls are not restarted.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(i32) as usize;
    // SAFETY: the action is valid, and its handler does nothing.
    checked(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }).unwrap();
}

/// Another process, that locks as it is told by lines on its standard input, and answers in lines.
struct Other {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn new(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "locks::other_process", "--nocapture", "--test-threads=1"])
            .env("CSVFS_TEST_LOCK", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// Without waiting for the answer.
    fn tell(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the other process has ended");
            // The test harness prints lines of its own, and may have begun this one.
            if let Some((_, answer)) = line.trim_end().split_once("> ") {
                return answer.to_owned();
            }
        }
    }

    fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer()
    }

    /// Kills it.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal to its thread that waits for a lock.
    fn interrupt(&self, signal: i32) {
        let (process, thread) = (self.child.id(), self.waiting_thread());
        // SAFETY: the call has no preconditions.
        checked(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) }).unwrap();
    }

    /// Waits until it waits for a lock; the thread that does.
    fn waiting_thread(&self) -> u32 {
        loop {
            for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
                let task = task.unwrap();
                let call = std::fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
                let words: Vec<&str> = call.split(' ').collect();
                // The number of the call, its descriptor, and the command.
                if words.first() == Some(&libc::SYS_fcntl.to_string().as_str())
                    && words.get(2) == Some(&"0x7")
                {
                    return task.file_name().to_str().unwrap().parse().unwrap();
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test but the other process of the tests below.
#[test]
fn other_process() {
    let Some(path) = std::env::var_os("CSVFS_TEST_LOCK") else { return };
    catch(libc::SIGUSR1);
    let mut file = Some(open(Path::new(&path)));
    for order in std::io::stdin().lines() {
        let order = order.unwrap();
        let words: Vec<&str> = order.split(' ').collect();
        let number = |place: usize| words[place].parse::<i64>().unwrap();
        let kind = |word| match word {
            "read" => libc::F_RDLCK,
            "write" => libc::F_WRLCK,
            _ => libc::F_UNLCK,
        };
        let lock =
            |command| record_lock(file.as_ref().unwrap(), command, kind(words[1]), number(2), number(3));
        let result = match words[0] {
            "set" => lock(libc::F_SETLK).map(|_| "done".to_owned()),
            "wait" => lock(libc::F_SETLKW).map(|_| "done".to_owned()),
            "test" => lock(libc::F_GETLK)
                .map(|lock| format!("{} {} {} {}", lock.l_type, lock.l_start, lock.l_len, lock.l_pid)),
            "close" => {
                file = None;
                Ok("done".to_owned())
            }
            other => panic!("unknown order {other}"),
        };
        let answer = result.unwrap_or_else(|error| format!("errno {}", error.raw_os_error().unwrap()));
        println!("> {answer}");
    }
}

#[test]
fn posix_locks_conflict_between_processes() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let (file, mut other) = (open(&path), Other::new(&path));
    record_lock(&file, libc::F_SETLK, libc::F_WRLCK, 100, 50).unwrap();
    assert_eq!(other.ask("set write 0 100"), "done");
    assert_eq!(other.ask("set read 149 1"), format!("errno {}", libc::EAGAIN));
    assert_eq!(other.ask("test read 0 0"), format!("{} 100 50 {}", libc::F_WRLCK, std::process::id()));
    assert_eq!(other.ask("test read 150 0"), format!("{} 150 0 0", libc::F_UNLCK));
    let seen = record_lock(&file, libc::F_GETLK, libc::F_WRLCK, 0, 0).unwrap();
    assert_eq!((seen.l_start, seen.l_len, seen.l_pid), (0, 100, other.child.id().cast_signed()));
    record_lock(&file, libc::F_SETLK, libc::F_UNLCK, 120, 10).unwrap();
    assert_eq!(other.ask("set write 120 10"), "done");
    assert_eq!(other.ask("set write 119 1"), format!("errno {}", libc::EAGAIN));
    assert_eq!(other.ask("set unlock 0 0"), "done");
    record_lock(&file, libc::F_SETLK, libc::F_WRLCK, 0, 0).unwrap();
}

#[test]
fn closing_any_descriptor_ends_a_process_s_locks() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let (file, mut other) = (open(&path), Other::new(&path));
    record_lock(&file, libc::F_SETLK, libc::F_WRLCK, 0, 0).unwrap();
    assert_eq!(other.ask("set write 0 0"), format!("errno {}", libc::EAGAIN));
    drop(open(&path));
    assert_eq!(other.ask("set write 0 0"), "done");
    assert_eq!(other.ask("close"), "done");
    record_lock(&file, libc::F_SETLK, libc::F_WRLCK, 0, 0).unwrap();
}

#[test]
fn a_process_s_lock_outlives_another_s_release_of_its_old_handle() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let first = open(&path);
    record_lock(&first, libc::F_SETLK, libc::F_WRLCK, 0, 10).unwrap();
    // A child has the same open file, so that our close is not its end.
    let mut holder =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::from(first.try_clone().unwrap())).spawn();
    let holder = holder.as_mut().unwrap();
    drop(first);
    let (second, mut other) = (open(&path), Other::new(&path));
    record_lock(&second, libc::F_SETLK, libc::F_WRLCK, 0, 10).unwrap();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    // The first open file is released now; the lock was set anew by the second.
    for _ in 0..20 {
        assert_eq!(other.ask("set write 0 10"), format!("errno {}", libc::EAGAIN));
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn locks_of_open_files_end_with_them() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let (first, second) = (open(&path), open(&path));
    record_lock(&first, OFD_SETLK, libc::F_WRLCK, 0, 0).unwrap();
    assert_eq!(errno(record_lock(&second, OFD_SETLK, libc::F_RDLCK, 0, 0)), libc::EAGAIN);
    assert_eq!(errno(record_lock(&second, libc::F_SETLK, libc::F_RDLCK, 0, 0)), libc::EAGAIN);
    drop(open(&path));
    assert_eq!(errno(record_lock(&second, OFD_SETLK, libc::F_RDLCK, 0, 0)), libc::EAGAIN);
    let again = first.try_clone().unwrap();
    drop(first);
    assert_eq!(errno(record_lock(&second, OFD_SETLK, libc::F_RDLCK, 0, 0)), libc::EAGAIN, "open still");
    drop(again);
    // RELEASE comes when the last reference is gone, after close has returned.
    record_lock(&second, OFD_SETLKW, libc::F_WRLCK, 0, 0).unwrap();
}

#[test]
fn flock_is_apart_and_ends_with_the_open_file() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let (first, second) = (open(&path), open(&path));
    flock(&first, libc::LOCK_EX).unwrap();
    assert_eq!(errno(flock(&second, libc::LOCK_SH | libc::LOCK_NB)), libc::EWOULDBLOCK);
    record_lock(&second, OFD_SETLK, libc::F_WRLCK, 0, 0).unwrap();
    flock(&first, libc::LOCK_SH).unwrap();
    flock(&second, libc::LOCK_SH | libc::LOCK_NB).unwrap();
    flock(&second, libc::LOCK_UN).unwrap();
    flock(&first, libc::LOCK_EX | libc::LOCK_NB).unwrap();
    drop(first);
    flock(&second, libc::LOCK_EX).unwrap();
}

#[test]
fn a_waiter_gets_the_lock_when_it_is_free() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let (file, mut other) = (open(&path), Other::new(&path));
    record_lock(&file, libc::F_SETLK, libc::F_WRLCK, 0, 0).unwrap();
    other.tell("wait write 0 0");
    other.waiting_thread();
    record_lock(&file, libc::F_SETLK, libc::F_UNLCK, 0, 0).unwrap();
    assert_eq!(other.answer(), "done");
    other.kill();
    record_lock(&file, libc::F_SETLKW, libc::F_WRLCK, 0, 0).unwrap();
}

#[test]
fn a_signal_ends_the_waiting_and_so_does_death() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let (file, mut other) = (open(&path), Other::new(&path));
    record_lock(&file, libc::F_SETLK, libc::F_WRLCK, 0, 0).unwrap();
    other.tell("wait write 0 0");
    other.waiting_thread();
    other.interrupt(libc::SIGUSR1);
    assert_eq!(other.answer(), format!("errno {}", libc::EINTR));
    other.tell("wait write 0 0");
    other.waiting_thread();
    other.kill();
    // Nobody waits any more, or has the lock once it is free.
    record_lock(&file, libc::F_SETLK, libc::F_UNLCK, 0, 0).unwrap();
    let second = open(&path);
    record_lock(&second, OFD_SETLK, libc::F_WRLCK, 0, 0).unwrap();
}

#[test]
fn deadlocks_are_refused() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let (file, mut other) = (open(&path), Other::new(&path));
    record_lock(&file, libc::F_SETLK, libc::F_WRLCK, 0, 1).unwrap();
    assert_eq!(other.ask("set write 1 1"), "done");
    other.tell("wait write 0 1");
    other.waiting_thread();
    assert_eq!(errno(record_lock(&file, libc::F_SETLKW, libc::F_WRLCK, 1, 1)), libc::EDEADLK);
    record_lock(&file, libc::F_SETLK, libc::F_UNLCK, 0, 0).unwrap();
    assert_eq!(other.answer(), "done");
}

/// Interrupts at every moment: before the request is known, while it is being asked for, and after its answer.
#[test]
fn no_interrupt_is_lost() {
    catch(libc::SIGUSR2);
    let mounted = Mounted::new();
    let path = mounted.path("file");
    let holder = open(&path);
    flock(&holder, libc::LOCK_EX).unwrap();
    for round in 0..300_u64 {
        let waiter = open(&path);
        let ready = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ready);
        let thread = thread::spawn(move || {
            told.store(true, Ordering::SeqCst);
            flock(&waiter, libc::LOCK_EX)
        });
        while !ready.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        thread::sleep(Duration::from_micros(round % 150));
        // The first signal may come before the call; whichever comes within it must end it.
        while !thread.is_finished() {
            // SAFETY: the thread has not been joined.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR2) };
            thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(errno(thread.join().unwrap()), libc::EINTR);
    }
}
