//! Resources as a person names them.
//!
//! A path is resolved by its mount, and a mount that may answer nothing (its lease has run out, its LUN hangs) keeps
//! whoever asks waiting where not even a signal ends it. So a process of its own asks, and is left behind when that takes
//! too long: it ends when the mount answers.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use lockd::ids::ResourceId;
use lockd::local::xattr::resource_name;

/// The command that this program calls itself with.
pub(crate) const RESOLVE: &str = "resolve-paths";

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
    let mut told = if paths.is_empty() { Vec::new() } else { ask(&paths, patience)? }.into_iter();
    names
        .iter()
        .map(|name| match name.parse() {
            Ok(resource) => Ok(resource),
            Err(_) => match told.next().context("the mount has told too little")? {
                Ok(resource) => Ok(resource.parse()?),
                Err(why) => Err(anyhow!(why)),
            },
        })
        .collect()
}

/// What the mounts say of `paths`, in their order.
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
    let (Some(mut stdin), Some(mut stdout)) = (stdin, stdout) else { bail!("a process without its pipes") };
    let asked = paths.join("\0");
    let (sender, receiver) = mpsc::channel();
    // Both wait for a process that may not end; they end with this one.
    std::thread::spawn(move || {
        // If it is gone, what it tells is too short.
        let _ = stdin.write_all(asked.as_bytes());
    });
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.read_to_string(&mut text).map(|_| text);
        // Nobody waits any more if it has taken too long.
        let _ = sender.send(read);
    });
    let Ok(text) = receiver.recv_timeout(patience) else {
        let more =
            if paths.len() > 1 { format!(" or one of {} more", paths.len() - 1) } else { String::new() };
        bail!(
            "the mount of {}{more} has not answered within {} s; `csvfs status` says why it is silent",
            paths.first().copied().unwrap_or_default(),
            patience.as_secs_f64()
        )
    };
    let text = text.context("reading what the mount says")?;
    // It has told all, and ends.
    child.wait().context("waiting for the process that asked the mount")?;
    let told: Vec<_> = text.split_terminator('\0').map(parse).collect();
    ensure!(told.len() == paths.len(), "the mount has told {} of {} paths", told.len(), paths.len());
    Ok(told)
}

fn parse(line: &str) -> Result<String, String> {
    match line.split_at_checked(1) {
        Some(("+", resource)) => Ok(resource.to_owned()),
        Some((_, why)) => Err(why.to_owned()),
        None => Err("the mount has told nothing".to_owned()),
    }
}

/// The process that asks: paths come in, resources or reasons go out, each ended by a zero byte.
pub(crate) fn resolve_paths() -> anyhow::Result<()> {
    let (mut paths, mut out) = (Vec::new(), std::io::stdout().lock());
    std::io::stdin().lock().read_to_end(&mut paths)?;
    for path in paths.split(|byte| *byte == 0) {
        match told(Path::new(std::ffi::OsStr::from_bytes(path))) {
            Ok(resource) => write!(out, "+{resource}\0")?,
            Err(why) => write!(out, "-{why:#}\0")?,
        }
        out.flush()?;
    }
    Ok(())
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
