//! Two mounts of one LUN, and what comes after a mount that died (V1, V2).

use anyhow::{Context, Result, ensure};
use lab::mounted::{csvfs_ok, fsck_clean};
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick, refused};
use lab::{Mounted, Site, content};

/// Beside a mount everything else is refused and names it.
fn refused_beside(site: &Site, url: &str, mount: &mut Mounted) -> Result<()> {
    let pid = format!("process {}", mount.process().pid());
    let named = [pid.as_str(), "host \"first\""];
    site.mount_refused(url, &[])?.saying(&named)?.saying(&["unmount it there"])?;
    site.mount_refused(url, &["-o", "ro"])?.saying(&named)?;
    refused(&["fsck", "--lun", url])?.saying(&named)?;
    refused(&["fsck", "--repair", "--lun", url])?.saying(&named)?;
    Ok(())
}

/// A first mount, refusals beside it, its death, and the next mount; tells how that one opened the volume.
fn dies_and_is_followed(site: &Site, url: &str) -> Result<String> {
    format_quick(url)?;
    let mut mount = site.mount_at(url, "mnt", &["--node", "first"])?;
    content::fill(&mount.path().join("synced"), 1, 300)?;
    refused_beside(site, url, &mut mount)?;
    // Whoever was refused has not disturbed the first one.
    content::fill(&mount.path().join("later"), 2, 300)?;
    for index in 0..50 {
        std::fs::write(mount.path().join(format!("name{index}")), "")?;
    }
    mount.crash();
    let mount = site.mount(url)?;
    content::check(&mount.path().join("synced"), 1, 300)?;
    content::check(&mount.path().join("later"), 2, 300)?;
    for index in 0..50 {
        ensure!(mount.path().join(format!("name{index}")).exists(), "name{index} is lost");
    }
    let opening = site.status()?["opening"].clone();
    content::fill(&mount.path().join("third"), 3, 300)?;
    mount.unmount()?;
    fsck_clean(url)?;
    Ok(opening["how"].as_str().context("how it was opened")?.to_owned())
}

#[test]
fn on_a_file_the_second_is_refused_and_the_next_opens_in_place() -> Result<()> {
    let site = Site::new()?;
    let url = site.new_image(SIZE)?;
    let how = dies_and_is_followed(&site, &url)?;
    ensure!(how.starts_with("in place"), "{how}");
    Ok(())
}

#[test]
fn v1_on_nbdkit_the_second_is_refused_and_the_next_opens_by_copy() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::NbdkitMemory, &site.path(""), SIZE)?;
    let how = dies_and_is_followed(&site, &server.url())?;
    ensure!(how.starts_with("by copy"), "{how}");
    Ok(())
}

#[test]
fn v1_on_csv_target_the_second_is_refused_and_the_next_opens_in_place() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::CsvTarget, &site.path(""), SIZE)?;
    let how = dies_and_is_followed(&site, &server.url())?;
    ensure!(how.starts_with("in place"), "{how}");
    Ok(())
}

/// A volume that was not closed is checked, read and repaired without a mount in between.
#[test]
fn a_dead_mount_is_a_note_to_fsck_and_no_finding() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::NbdkitMemory, &site.path(""), SIZE)?;
    let url = server.url();
    format_quick(&url)?;
    for round in 0..2 {
        let mount = site.mount(&url)?;
        content::fill(&mount.path().join(format!("file{round}")), round, 10)?;
        mount.crash();
        fsck_clean(&url)?;
    }
    let mount = site.mount_at(&url, "mnt", &["-o", "ro"])?;
    content::check(&mount.path().join("file0"), 0, 10)?;
    content::check(&mount.path().join("file1"), 1, 10)?;
    mount.unmount()?;
    let said = csvfs_ok(&["fsck", "--repair", "--lun", &url])?;
    ensure!(said.contains("is clean"), "{said}");
    let said = csvfs_ok(&["fsck", "--lun", &url])?;
    ensure!(!said.contains("note:"), "{said}");
    Ok(())
}

/// umount returns before the process has closed the volume: fsck waits for that, and no longer.
#[test]
fn fsck_after_umount_waits_for_the_closing_mount() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::NbdkitMemory, &site.path(""), SIZE)?;
    let url = server.url();
    // With the usual window.
    lab::mounted::format(&url)?;
    for round in 0..3 {
        let mount = site.mount(&url)?;
        content::fill(&mount.path().join(format!("file{round}")), round, 500)?;
        let began = std::time::Instant::now();
        ensure!(std::process::Command::new("umount").arg(mount.path()).status()?.success());
        fsck_clean(&url)?;
        ensure!(began.elapsed() < std::time::Duration::from_secs(8), "it waited for {:?}", began.elapsed());
    }
    Ok(())
}

/// Whoever looks for the holder of a file touches no other files: those of a mount that hangs would hang it too.
#[test]
fn a_hung_mount_does_not_hang_who_is_refused_elsewhere() -> Result<()> {
    let (hung_site, site) = (Site::new()?, Site::new()?);
    let mut hung = hung_site.mount(&hung_site.volume()?)?;
    // Open in a program that nobody has to wait for while it hangs.
    let open = std::fs::File::create(hung.path().join("open"))?;
    let mut user = std::process::Command::new("sleep").arg("60").stdin(open).spawn()?;
    let url = site.volume()?;
    let mut mount = site.mount(&url)?;
    let pid = format!("process {}", mount.process().pid());
    hung.process().signal(libc::SIGSTOP);
    // Long enough that the kernel has nothing cached any more.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let refused = site.mount_refused(&url, &[]).and_then(|refused| refused.saying(&[&pid]));
    hung.process().signal(libc::SIGCONT);
    user.kill()?;
    user.wait()?;
    refused?;
    hung.unmount()?;
    mount.unmount()
}
