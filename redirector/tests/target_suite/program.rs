//! `csv-target` as a process: its command line, its messages, its signals, and restarts under load.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::lab::cookie;
use crate::peer::Peer;

const PROGRAM: &str = env!("CARGO_BIN_EXE_csv-target");

/// A running csv-target, killed when it is dropped.
struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts it on `nbd` and `control` in `dir`, and waits until it is ready.
    fn start(dir: &Path) -> Self {
        let unix = |name: &str| format!("unix:{}", dir.join(name).display());
        let mut child = Command::new(PROGRAM)
            .args(["--file", dir.join("lun.img").to_str().unwrap(), "--size", "64M", "--export", "vms"])
            .args(["--listen", &unix("nbd"), "--listen", "127.0.0.1:0", "--control", &unix("control")])
            .args(["--state", dir.join("state").to_str().unwrap()])
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("csv-target: ready: nbd+unix:///vms?socket="), "{line}");
        Self { child }
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).env("RUST_LOG", "error").output().unwrap()
}

fn control(dir: &Path, request: &str) -> Output {
    run(&["ctl", "--control", &format!("unix:{}", dir.join("control").display()), request])
}

#[test]
fn sigterm_finishes_and_exits_with_zero() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path());
    let mut peer = Peer::connect(&dir.path().join("nbd"));
    peer.go().unwrap();
    assert_eq!(peer.write(0, &[7; 4096]).unwrap(), 0);
    running.signal("-TERM");
    assert!(running.child.wait().unwrap().success());
    assert!(peer.is_closed());
    assert!(!dir.path().join("nbd").exists(), "it takes its socket away");
    assert_eq!(std::fs::read(dir.path().join("lun.img")).unwrap()[..4096], [7; 4096]);
}

#[test]
fn nothing_answered_is_lost_when_it_is_killed_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let mut running = Running::start(dir.path());
    let under_way = AtomicUsize::new(0);
    for (round, how) in ["-KILL", "-TERM", "-KILL"].into_iter().enumerate() {
        let fill = u8::try_from(round + 1).unwrap();
        under_way.store(0, Ordering::Release);
        // Four writers, each of which knows how many of its blocks have been answered.
        let answered: Vec<u64> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4u64)
                .map(|writer| {
                    let (path, under_way) = (&path, &under_way);
                    scope.spawn(move || {
                        let mut peer = Peer::connect(path);
                        peer.hello(100 + writer, cookie(100 + writer)).unwrap();
                        peer.go().unwrap();
                        let mut done = 0;
                        while done < 4000 && peer.write((writer * 4000 + done) * 4096, &[fill; 4096]).is_ok()
                        {
                            done += 1;
                            if done == 100 {
                                under_way.fetch_add(1, Ordering::AcqRel);
                            }
                        }
                        done
                    })
                })
                .collect();
            crate::lab::eventually("all writers are under way", || under_way.load(Ordering::Acquire) == 4);
            running.signal(how);
            running.child.wait().unwrap();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        // The socket that a killed target leaves behind is no obstacle.
        running = Running::start(dir.path());
        let mut reader = Peer::connect(&path);
        reader.go().unwrap();
        for (writer, done) in (0..4u64).zip(answered) {
            let length = usize::try_from(done * 4096).unwrap();
            for (part, offset) in (0..length).step_by(1 << 20).enumerate() {
                let take = (length - offset).min(1 << 20);
                let data = reader.read(writer * 4000 * 4096 + offset as u64, take).unwrap();
                assert!(data.iter().all(|byte| *byte == fill), "{how}: writer {writer}, part {part}");
            }
        }
    }
}

#[test]
fn an_ended_client_stays_refused_when_the_target_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path());
    let fenced = control(dir.path(), r#"{"op":"fence","client":7}"#);
    assert!(fenced.status.success(), "{fenced:?}");
    running.signal("-KILL");
    drop(running);
    let _running = Running::start(dir.path());
    let mut peer = Peer::connect(&dir.path().join("nbd"));
    assert!(peer.hello(7, cookie(7)).is_err());
}

#[test]
fn control_answers_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let _running = Running::start(dir.path());
    let mut peer = Peer::connect(&dir.path().join("nbd"));
    peer.hello(7, cookie(7)).unwrap();
    peer.go().unwrap();
    peer.write(1 << 20, &[1; 4096]).unwrap();
    let ask = |request: &str| {
        let output = control(dir.path(), request);
        assert!(output.status.success(), "{request}: {output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let touched = ask(r#"{"op":"touched","client":7,"offset":0,"length":2097152}"#);
    assert_eq!((&touched["changed"], &touched["regions"]), (&1.into(), &32.into()));
    assert_eq!(ask(r#"{"op":"counters"}"#)["clients"][1]["bytes_written"], 4096);
    assert_eq!(ask(r#"{"op":"status"}"#)["connections"], 1);
    let fault =
        ask(r#"{"op":"fault","action":{"error":{"errno":5}},"kinds":["write"],"count":1}"#)["fault"].clone();
    assert_eq!(peer.write(0, &[1; 512]).unwrap(), 5);
    assert_eq!(ask(r#"{"op":"faults"}"#)["faults"][0]["fired"], 1);
    ask(&format!(r#"{{"op":"clear","fault":{fault}}}"#));
    ask(r#"{"op":"volatile","on":true}"#);
    peer.write(0, &[9; 512]).unwrap();
    ask(r#"{"op":"crash"}"#);
    assert!(peer.is_closed());
    ask(r#"{"op":"release"}"#);
    ask(r#"{"op":"cut"}"#);
    ask(r#"{"op":"forget_touched"}"#);
    let refused = control(dir.path(), r#"{"op":"touched","client":8,"offset":0,"length":1}"#);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has not seen that client"), "{refused:?}");
    assert!(!control(dir.path(), r#"{"op":"fault","action":"hang","kind":["write"]}"#).status.success());
}

#[test]
fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let _running = Running::start(dir.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let own = path("own.img");
    let (own, served) = (own.to_str().unwrap(), path("lun.img"));
    let free = "127.0.0.1:0";
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--file", own, "--size", "1M", "--listen", &taken], 1, "another program listens there"),
        (
            &["--file", own, "--size", "2M", "--listen", free],
            1,
            "is 1048576 bytes long, but --size says 2097152",
        ),
        (&["--file", "/nonexistent/x", "--listen", free], 1, "does not exist; give --size"),
        (&["--file", "/nonexistent/x", "--size", "1M", "--listen", free], 1, "cannot create /nonexistent/x"),
        (&["--file", "/dev/null", "--listen", free], 1, "neither a regular file nor a block device"),
        (&["--file", own, "--listen", "203.0.113.1:1"], 1, "no such address"),
        (&["--file", own, "--listen", "unix:/nonexistent/s"], 1, "does the directory of the socket exist"),
        (&["--file", own, "--listen", free, "--tls", "/nonexistent"], 1, "/nonexistent/ca-cert.pem"),
        (&["--file", served.to_str().unwrap(), "--listen", free], 1, "is another csv-target serving it"),
        (&["--file", own], 2, "--listen"),
        (&["--file", own, "--listen", "nonsense"], 2, "is not an address"),
        (&["--file", own, "--size", "many", "--listen", free], 2, "is not a size"),
    ];
    for (arguments, code, text) in cases {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {error}");
        assert!(error.contains(text), "{arguments:?}: {error}");
    }
}
