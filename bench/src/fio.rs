//! Runs of fio, read from its JSON.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::programs;
use serde_json::Value;

/// What is read or written.
#[derive(Clone, Debug)]
pub enum Target {
    /// A file, with O_DIRECT, by io_uring.
    File(String),
    /// An NBD export, by fio's own client.
    Nbd(String),
}

impl Target {
    /// A file.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self::File(path.display().to_string())
    }
}

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// fio's `rw`.
    pub rw: &'static str,
    /// Request size in bytes.
    pub request: u32,
    /// Requests in flight.
    pub depth: u32,
    /// The part of the target that is used, in bytes.
    pub size: u64,
    /// How long, in seconds; zero: once over `size`.
    pub seconds: u32,
}

/// What fio measured.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Requests per second.
    pub iops: f64,
    /// Mean completion latency in microseconds.
    pub latency_us: f64,
    /// Bytes per second.
    pub rate: f64,
}

/// Runs `load` on `target`.
///
/// # Errors
/// If fio fails or reports an I/O error; its output is in the error.
pub fn run(target: &Target, load: Load) -> Result<Sample> {
    let mut command = Command::new(programs::installed("fio")?);
    command.args([
        "--name=load",
        "--output-format=json",
        "--group_reporting",
        "--randrepeat=0",
        "--norandommap",
    ]);
    command.arg(format!("--rw={}", load.rw)).arg(format!("--bs={}", load.request));
    command.arg(format!("--iodepth={}", load.depth)).arg(format!("--size={}", load.size));
    if load.seconds > 0 {
        command.arg("--time_based").arg(format!("--runtime={}", load.seconds)).arg("--ramp_time=500ms");
    }
    match target {
        Target::File(path) => command
            .args(["--ioengine=io_uring", "--direct=1", "--fallocate=none"])
            .arg(format!("--filename={path}")),
        Target::Nbd(url) => command.arg("--ioengine=nbd").arg(format!("--uri={url}")),
    };
    let output = command.output().context("running fio")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "fio failed ({}): {}{text}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).with_context(|| format!("fio printed no JSON: {text}"))?;
    let side = if load.rw.contains("read") { "read" } else { "write" };
    let side = &report["jobs"][0][side];
    let number = |value: &Value| value.as_f64().context("a field is missing in fio's report");
    Ok(Sample {
        iops: number(&side["iops"])?,
        latency_us: number(&side["clat_ns"]["mean"])? / 1000.0,
        rate: number(&side["bw_bytes"])?,
    })
}
