//! What is asked for and cannot be: of lockctl, and of the locks of files.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait::until;

use super::{LIMIT, done, output, refused, running};

/// More than a client may have waiting.
const WAITERS: usize = 1200;

#[test]
fn what_lockctl_cannot_do_it_says_in_one_line_and_changes_nothing() -> Result<()> {
    running(3, |cluster| {
        let mount = cluster.node(2).mount_point();
        let text = |name: &str| mount.join(name).display().to_string();
        fs::write(mount.join("owned"), vec![1; 4096])?;
        fs::write(mount.join("free"), b"x")?;
        let (owned, free, missing) = (text("owned"), text("free"), text("missing"));
        done(cluster, "n1", &["lockctl", "acquire", &owned, "--node", "n2"])?;
        let shown = || -> Result<serde_json::Value> {
            Ok(serde_json::from_str(&done(cluster, "n1", &["lockctl", "show", &owned, "--json"])?)?)
        };
        let before = shown()?;
        ensure!(before["holders"][0]["node"] == "n2", "{before}");
        let tmp = cluster.folder().join("plain").display().to_string();
        fs::write(&tmp, b"x")?;
        let cases: [(&[&str], &[&str]); 13] = [
            (&["transfer", &owned, "--to", "n9"], &["n9"]),
            (&["transfer", &missing, "--to", "n3"], &["missing"]),
            (&["transfer", &tmp, "--to", "n3"], &["plain"]),
            (&["transfer", &free, "--to", "n3"], &["held by nobody", "acquire"]),
            (&["transfer", &owned, &missing, "--to", "n3"], &["missing"]),
            (&["acquire", &owned, "--node", "n9"], &["n9"]),
            (&["acquire", &missing], &["missing"]),
            (&["release", &free], &["nobody holds"]),
            (&["show", &missing], &["missing"]),
            (&["coordinator", "other", "--to", "n2"], &["other"]),
            (&["break", &owned], &["no holder that has ended"]),
            (&["voters", "add", "n9"], &["n9"]),
            (&["voters", "remove", "n9"], &["n9"]),
        ];
        for (words, says) in cases {
            let said = refused(cluster, "n1", &[&["lockctl"], words].concat(), 1, says)?;
            ensure!(said.starts_with("lockctl: ") && said.lines().count() == 1, "{words:?}: {said}");
        }
        let after = shown()?;
        ensure!(after["holders"][0]["epoch"] == before["holders"][0]["epoch"], "{before} -> {after}");
        ensure!(fs::read(mount.join("owned"))? == vec![1; 4096]);
        // Written wrong is told apart from refused.
        for words in
            [&["transfer", &owned][..], &["acquire"], &["voters", "promote", "n1"], &["coordinator", "vms"]]
        {
            let output = output(cluster, "n1", "lockctl", words)?;
            ensure!(output.status.code() == Some(2), "{words:?}: {output:?}");
        }
        // A live holder is not broken, whoever confirms it.
        refused(cluster, "n1", &["lockctl", "break", &owned, "--confirm-node", "n2"], 1, &["live one"])?;
        ensure!(shown()?["holders"][0]["node"] == "n2");
        Ok(())
    })
}

fn flock(file: &File, how: i32) -> std::io::Result<()> {
    // SAFETY: the descriptor is open through the call.
    let status = unsafe { libc::flock(file.as_raw_fd(), how) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn a_client_that_floods_with_locks_is_refused_and_the_others_go_on() -> Result<()> {
    running(2, |cluster| {
        let path = |number: u8, name: &str| cluster.node(number).mount_point().join(name);
        fs::write(path(1, "wanted"), b"x")?;
        fs::write(path(1, "other"), b"x")?;
        let holder = File::open(path(1, "wanted"))?;
        flock(&holder, libc::LOCK_EX)?;
        let (refused, granted) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| -> Result<()> {
            for _ in 0..WAITERS {
                let (refused, granted, path) = (&refused, &granted, path(2, "wanted"));
                std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, move || {
                    let file = File::open(path).expect("it is there");
                    match flock(&file, libc::LOCK_EX) {
                        Ok(()) => granted.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            assert_eq!(error.raw_os_error(), Some(libc::ENOLCK), "{error}");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                })?;
            }
            let some =
                until("some are refused", LIMIT, || (refused.load(Ordering::Relaxed) > 0).then_some(()));
            // Others, on this node and on that, are served meanwhile.
            let others = [1, 2].into_iter().try_for_each(|number| -> Result<()> {
                let file = File::open(path(number, "other"))?;
                flock(&file, libc::LOCK_EX).context("another file's lock")?;
                flock(&file, libc::LOCK_UN)?;
                fs::write(path(number, &format!("by{number}")), b"x")?;
                Ok(())
            });
            // Whatever came of it, or the waiters wait for ever.
            drop(holder);
            some.and(others)
        })?;
        let (refused, granted) = (refused.into_inner(), granted.into_inner());
        ensure!(refused + granted == WAITERS && granted > 0, "{refused} refused, {granted} granted");
        // Nothing is left of it.
        let file = File::open(path(1, "wanted"))?;
        until("it is free", Duration::from_secs(10), || flock(&file, libc::LOCK_EX | libc::LOCK_NB).ok())
    })
}
