//! What Prometheus is told, asked for by a plain connection.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick};
use lab::{Site, content};

/// A port that nobody has now.
fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// All samples: name (with labels) and value.
fn ask(address: &str) -> Result<HashMap<String, f64>> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").context("a head and a body")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK") && head.contains("text/plain; version=0.0.4"), "{head}");
    let mut samples = HashMap::new();
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("a sample: {line}"))?;
        samples.insert(name.to_owned(), value.parse().with_context(|| format!("a value: {line}"))?);
    }
    Ok(samples)
}

fn sum(samples: &HashMap<String, f64>, name: &str, label: &str) -> f64 {
    let of = samples.iter().filter(|(key, _)| key.split('{').next() == Some(name) && key.contains(label));
    of.map(|(_, value)| value).sum()
}

#[test]
fn a_mount_and_its_target_tell_what_they_did() -> Result<()> {
    let site = Site::new()?;
    let (of_target, of_mount) = (free_address()?, free_address()?);
    let server = Server::with(Kind::CsvTarget, &site.path(""), SIZE, &["--metrics", &of_target])?;
    format_quick(&server.url())?;
    let mount = site.mount_at(&server.url(), "mnt", &["--metrics", &of_mount])?;
    let before = ask(&of_mount)?;
    content::fill(&mount.path().join("file"), 1, 100)?;
    content::check(&mount.path().join("file"), 1, 100)?;
    let after = ask(&of_mount)?;
    let grown = |name: &str| sum(&after, name, "") - sum(&before, name, "");
    ensure!(grown("csvfs_written_bytes_total") >= 409_600.0, "{after:?}");
    ensure!(grown("csvfs_writes_total") >= 1.0 && grown("csvfs_commits_total") >= 1.0, "{after:?}");
    ensure!(grown("csvfs_lun_latency_seconds_count") >= 1.0, "{after:?}");
    ensure!((sum(&after, "csvfs_lun_up", "") - 1.0).abs() < 0.1, "{after:?}");
    ensure!(sum(&after, "csvfs_lun_held_requests", "") < 0.1 && sum(&after, "csvfs_failed", "") < 0.1);
    ensure!(sum(&after, "csvfs_lun_ghosts", "") < 0.1 && after.keys().any(|key| key.contains("le=\"+Inf\"")));
    let target = ask(&of_target)?;
    ensure!(sum(&target, "csv_target_requests_total", "kind=\"write\"") >= 10.0, "{target:?}");
    ensure!(sum(&target, "csv_target_bytes_total", "kind=\"write\"") >= 409_600.0, "{target:?}");
    ensure!(sum(&target, "csv_target_connections", "") >= 1.0, "{target:?}");
    mount.unmount()?;
    ensure!(TcpStream::connect(&of_mount).is_err(), "the metrics end with the mount");
    // An address that is taken is told before anything is mounted.
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    site.mount_refused(&server.url(), &["--metrics", &address])?.saying(&["metrics", &address]).map(drop)
}
