//! Resources as a person names them.
//!
//! A path is resolved by its mount, and a mount that may answer nothing (its lease has run out, its LUN hangs) keeps
//! whoever asks waiting where not even a signal ends it. So a process of its own asks, and is left behind when that takes
//! too long: it ends when the mount answers.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use lockd::ids::ResourceId;
use lockd::local::xattr::resource_name;

/// The command that this program calls itself with.
pub(crate) const RESOLVE: &str = "resolve-paths";
/// Paths that mounts are asked about at the same time.
const IN_FLIGHT: usize = 16;
/// Paths that are named when they cannot be resolved.
const SHOWN_MAX: usize = 10;

/// The resource of a name: itself, or what the mount says of the path.
pub(crate) fn resource(name: &str, patience: Duration) -> anyhow::Result<ResourceId> {
    let found = resolve(&[name.to_owned()], patience)?;
    found.into_iter().next().ok_or_else(|| anyhow!("{name} was not resolved"))
}

/// The resources of names; `-` stands for the lines of standard input.
pub(crate) fn resources(names: &[String], patience: Duration) -> anyhow::Result<Vec<ResourceId>> {
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        if name == "-" {
            for line in std::io::stdin().lock().lines() {
                let line = line?;
                if !line.trim().is_empty() {
                    all.push(line.trim().to_owned());
                }
            }
        } else {
            all.push(name.clone());
        }
    }
    resolve(&all, patience)
}

fn resolve(names: &[String], patience: Duration) -> anyhow::Result<Vec<ResourceId>> {
    let paths: Vec<&str> =
        names.iter().filter(|name| name.parse::<ResourceId>().is_err()).map(String::as_str).collect();
    let told = if paths.is_empty() { Vec::new() } else { ask(&paths, patience)? };
    if let Some(wrong) = wrong(&told) {
        bail!(wrong);
    }
    let mut told = told.into_iter().flatten();
    names
        .iter()
        .map(|name| match name.parse() {
            Ok(resource) => Ok(resource),
            Err(_) => Ok(told.next().context("the mount has told too little")?.parse()?),
        })
        .collect()
}

/// Which paths are no resources, and why, if there are such.
fn wrong(told: &[Result<String, String>]) -> Option<String> {
    let all: Vec<&str> = told.iter().filter_map(|told| told.as_ref().err()).map(String::as_str).collect();
    let shown = all[..all.len().min(SHOWN_MAX)].join("\n  ");
    match all.len().saturating_sub(SHOWN_MAX) {
        _ if all.is_empty() => None,
        0 => Some(shown),
        more => Some(format!("{shown}\n  and {more} more")),
    }
}

/// What the mounts say of `paths`, in their order. Between two answers `patience` may pass.
fn ask(paths: &[&str], patience: Duration) -> anyhow::Result<Vec<Result<String, String>>> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(program)
        .arg(RESOLVE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting a process that asks the mount")?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else { bail!("a process without its pipes") };
    let asked = paths.join("\0");
    let (sender, receiver) = mpsc::channel();
    // Both wait for a process that may not end; they end with this one.
    std::thread::spawn(move || {
        // If it is gone, what it tells is too short.
        let _ = stdin.write_all(asked.as_bytes());
    });
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout).split(0);
        // Nobody waits any more if it has taken too long.
        lines.try_for_each(|line| sender.send(line)).ok();
    });
    let mut told: Vec<Option<Result<String, String>>> = vec![None; paths.len()];
    let mut missing = paths.len();
    while missing > 0 {
        let line = match receiver.recv_timeout(patience) {
            Ok(line) => line.context("reading what the mount says")?,
            Err(RecvTimeoutError::Timeout) => bail!(silent(paths, &told, patience)),
            Err(RecvTimeoutError::Disconnected) => {
                bail!(
                    "the process that asks the mount has ended with {missing} of {} paths untold",
                    paths.len()
                )
            }
        };
        let (place, answer) = parse(&line).context("what the mount has told is not understood")?;
        let place = told.get_mut(place).context("the mount has told of a path that was not asked for")?;
        missing -= usize::from(place.replace(answer).is_none());
    }
    // It has told all, and ends.
    child.wait().context("waiting for the process that asked the mount")?;
    Ok(told.into_iter().flatten().collect())
}

/// Of which paths nothing has been told.
fn silent(paths: &[&str], told: &[Option<Result<String, String>>], patience: Duration) -> String {
    let untold: Vec<&str> =
        paths.iter().zip(told).filter(|(_, told)| told.is_none()).map(|(path, _)| *path).collect();
    let more = if untold.len() > 1 { format!(" and {} more", untold.len() - 1) } else { String::new() };
    format!(
        "the mount of {}{more} has not answered within {} s; `csvfs status` says why it is silent",
        untold.first().copied().unwrap_or_default(),
        patience.as_secs_f64()
    )
}

fn line(place: usize, told: anyhow::Result<String>) -> String {
    match told {
        Ok(resource) => format!("{place}+{resource}\0"),
        Err(why) => format!("{place}-{why:#}\0"),
    }
}

fn parse(line: &[u8]) -> Option<(usize, Result<String, String>)> {
    let text = std::str::from_utf8(line).ok()?;
    let (place, answer) = text.split_at(text.find(['+', '-'])?);
    let answer = match answer.split_at(1) {
        ("+", resource) => Ok(resource.to_owned()),
        (_, why) => Err(why.to_owned()),
    };
    Some((place.parse().ok()?, answer))
}

/// The process that asks: paths come in, each ended by a zero byte; the place of each goes out with its resource or the
/// reason, as they come.
pub(crate) fn resolve_paths() -> anyhow::Result<()> {
    let mut paths = Vec::new();
    std::io::stdin().lock().read_to_end(&mut paths)?;
    let paths: Vec<&[u8]> = paths.split(|byte| *byte == 0).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(place) else { return Ok(()) };
            let told = told(Path::new(std::ffi::OsStr::from_bytes(path)));
            let mut out = std::io::stdout().lock();
            out.write_all(line(place, told).as_bytes())?;
            out.flush()?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..IN_FLIGHT.min(paths.len())).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread has panicked"))?)
    })
}

fn told(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    match resource_name(path) {
        Ok(resource) => Ok(resource),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no file {name}, and it is no resource such as volume/UUID/file/INODE or vm/NAME")
        }
        Err(error)
            if error.raw_os_error() == Some(libc::ENODATA) || error.kind() == ErrorKind::Unsupported =>
        {
            bail!("{name} is not on a volume of a cluster: no csvfs mount knows it")
        }
        Err(error) => Err(error).with_context(|| format!("asking the mount about {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_path_comes_back_with_its_place() {
        let there_and_back = |place, told| parse(line(place, told).trim_end_matches('\0').as_bytes());
        let resource = "volume/1/file/2".to_owned();
        assert_eq!(there_and_back(0, Ok(resource.clone())), Some((0, Ok(resource))));
        let why = "there is no file a-b+c";
        assert_eq!(there_and_back(9999, Err(anyhow!(why))), Some((9999, Err(why.to_owned()))));
        assert_eq!(parse(b"x"), None);
        assert_eq!(parse(b"x+y"), None);
    }

    #[test]
    fn every_path_that_is_wrong_is_named_up_to_a_bound() {
        let wrong_paths = |count: usize| {
            let told =
                |number| if number < count { Err(format!("no {number}")) } else { Ok("vm/a".to_owned()) };
            (0..count + 3).map(told).collect::<Vec<_>>()
        };
        assert_eq!(wrong(&wrong_paths(0)), None);
        assert_eq!(wrong(&wrong_paths(2)).as_deref(), Some("no 0\n  no 1"));
        let many = wrong(&wrong_paths(SHOWN_MAX + 5)).unwrap_or_default();
        assert!(many.ends_with("\n  no 9\n  and 5 more"), "{many}");
    }

    #[test]
    fn the_first_path_without_an_answer_is_named() {
        let told = [Some(Ok("vm/a".to_owned())), None, None];
        let said = silent(&["/a", "/b", "/c"], &told, Duration::from_secs(2));
        assert!(said.starts_with("the mount of /b and 1 more has not answered within 2 s"), "{said}");
    }
}
