//! A LUN that is reached by several paths, of which one goes.

use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::Site;
use lab::server::{Kind, Server};
use lab::site::SIZE;
use lab::wait::until;

use crate::server_gone::under_load_at;

/// The path in use, and what stands by.
fn paths(site: &Site) -> Result<(String, String)> {
    let path = site.status()?["path"].as_str().unwrap_or_default().to_owned();
    let (used, beside) = path.split_once("; beside it ").unwrap_or((path.as_str(), ""));
    Ok((used.to_owned(), beside.to_owned()))
}

fn wait_paths(site: &Site, what: &str, seen: impl Fn(&str, &str) -> bool) -> Result<()> {
    until(what, Duration::from_secs(10), || {
        paths(site).ok().filter(|(used, beside)| seen(used, beside)).map(drop)
    })
}

/// Two servers of one image: the first is killed under load and comes back. The mount is direct all the time.
#[test]
fn p1_one_of_two_servers_is_killed_under_load() -> Result<()> {
    let site = Site::new()?;
    let mut first = Server::start(Kind::NbdkitFile, &site.path(""), SIZE)?;
    let folder = site.path("second");
    std::fs::create_dir(&folder)?;
    symlink(site.path("lun.img"), folder.join("lun.img"))?;
    let second = Server::start(Kind::NbdkitFile, &folder, SIZE)?;
    under_load_at(&site, &mut first, &["--lun", &second.url()], |site, first| {
        let is_second = |text: &str| text.contains("/second/");
        wait_paths(site, "the second path stands by", |used, beside| {
            !is_second(used) && is_second(beside) && beside.contains("up for")
        })?;
        first.kill();
        wait_paths(site, "the second path serves", |used, beside| {
            is_second(used) && used.contains("up for") && beside.contains("down for")
        })?;
        ensure!(site.status()?["state"] == "direct", "{:?}", site.status()?);
        first.restart()?;
        wait_paths(site, "the first path serves again", |used, beside| {
            !is_second(used) && used.contains("up for") && beside.contains("up for")
        })
    })
}

#[test]
fn a_file_beside_other_paths_is_refused() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::NbdkitFile, &site.path(""), SIZE)?;
    let (url, file) = (server.url(), format!("file:{}", site.path("lun.img").display()));
    site.mount_refused(&url, &["--lun", &file])?.saying(&["cannot be one of several paths"]).map(drop)
}
