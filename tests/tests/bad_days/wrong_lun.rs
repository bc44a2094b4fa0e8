//! A LUN that is not there, or cannot be one.

use std::net::TcpListener;

use anyhow::Result;
use lab::Site;
use lab::server::{Kind, Server};
use lab::site::{SIZE, refused};

/// What format, mount and fsck all say of the LUN at `url`.
fn all_refuse(site: &Site, url: &str, parts: &[&str]) -> Result<()> {
    refused(&["format", "--lun", url])?.saying(parts)?;
    site.mount_refused(url, &[])?.saying(parts)?;
    site.mount_refused(url, &["-o", "ro"])?.saying(parts)?;
    refused(&["fsck", "--lun", url])?.saying(parts)?;
    refused(&["fsck", "--repair", "--lun", url])?.saying(parts)?;
    Ok(())
}

#[test]
fn a_server_that_is_not_there_is_named() -> Result<()> {
    let site = Site::new()?;
    let socket = site.text("none.sock");
    all_refuse(
        &site,
        &format!("nbd+unix:///vms?socket={socket}"),
        &[&socket, "cannot be reached", "check that"],
    )?;
    // A port that nobody listens on: it was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let url = format!("nbd://127.0.0.1:{port}/vms");
    all_refuse(&site, &url, &[&url, "cannot be reached", "refused", "check that"])
}

#[test]
fn an_export_that_is_not_there_is_named() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::CsvTarget, &site.path(""), SIZE)?;
    let url = format!("nbd+unix:///other?socket={}", server.socket().display());
    all_refuse(&site, &url, &["export \"other\""])
}

#[test]
fn a_lun_that_is_too_small_is_refused_with_the_least_size() -> Result<()> {
    let site = Site::new()?;
    let url = site.new_image(SIZE - 4096)?;
    let size = (SIZE - 4096).to_string();
    refused(&["format", "--lun", &url])?.saying(&[&size, "64 MiB"])?;
    site.mount_refused(&url, &[])?.saying(&["no csvfs volume"])?;
    let server = Server::start(Kind::NbdkitMemory, &site.path(""), 1 << 20)?;
    refused(&["format", "--lun", &server.url()])?.saying(&["1048576", "64 MiB"])?;
    site.mount_refused(&server.url(), &[])?.saying(&["no csvfs volume"])?;
    site.new_image(0)?;
    all_refuse(&site, &url, &["is empty", "truncate -s"])
}

#[test]
fn what_cannot_be_a_lun_is_refused() -> Result<()> {
    let site = Site::new()?;
    let missing = format!("file:{}", site.text("none.img"));
    all_refuse(&site, &missing, &[&site.text("none.img"), "there is no file", "truncate -s"])?;
    assert!(!site.path("none.img").exists(), "a LUN is not made by opening it");
    let folder = format!("file:{}", site.text("run"));
    all_refuse(&site, &folder, &["neither a regular file nor a block device"])?;
    all_refuse(&site, "/dev/null", &["neither a regular file nor a block device"])?;
    all_refuse(&site, "disk.img", &["names no LUN", "file:PATH"])?;
    all_refuse(&site, "fcp://h/wwn/0", &["names no LUN"])?;
    all_refuse(&site, "iscsi://h/iqn", &["a target and a LUN are needed", "iscsi://[USER@]HOST"])?;
    all_refuse(&site, "nbd+unix:///x", &["socket=PATH"])
}

#[test]
fn a_folder_that_cannot_be_mounted_on_is_refused() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let (none, file) = (site.text("none"), site.text("file"));
    std::fs::write(&file, "")?;
    refused(&["mount", "--lun", &url, &none])?.saying(&[&none, "No such file"])?;
    refused(&["mount", "--lun", &url, &file])?.saying(&[&file, "not a folder"])?;
    site.mount_refused(&url, &["-o", "nonsense"])?.saying(&["nonsense"])?;
    site.mount_refused(&url, &["-o", "remount"])?.saying(&["unmount and mount again"])?;
    Ok(())
}

#[test]
fn usage_errors_exit_with_two() -> Result<()> {
    for words in
        [&["mount"][..], &["format"], &["fsck", "--lun"], &["format", "--lun", "x", "--bogus"], &["bogus"]]
    {
        assert_eq!(refused(words)?.code, 2, "{words:?}");
    }
    Ok(())
}
