//! Runs of fio, read from its JSON.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

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
    /// The longest latency in microseconds, from the submission on.
    pub longest_us: f64,
    /// Bytes per second.
    pub rate: f64,
}

fn command(target: &Target, load: Load) -> Result<Command> {
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
    Ok(command)
}

/// What fio says at its end, which is fine if `ended` finds its status so.
fn sample(output: &Output, load: Load, ended: impl FnOnce(ExitStatus) -> bool) -> Result<Sample> {
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        ended(output.status),
        "fio failed ({}): {}{text}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).with_context(|| format!("fio printed no JSON: {text}"))?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio saw an I/O error: {text}");
    let side = &job[if load.rw.contains("read") { "read" } else { "write" }];
    let number = |value: &Value| value.as_f64().context("a field is missing in fio's report");
    Ok(Sample {
        iops: number(&side["iops"])?,
        latency_us: number(&side["clat_ns"]["mean"])? / 1000.0,
        longest_us: number(&side["lat_ns"]["max"])? / 1000.0,
        rate: number(&side["bw_bytes"])?,
    })
}

/// Runs `load` on `target`.
///
/// # Errors
/// If fio fails or reports an I/O error; its output is in the error.
pub fn run(target: &Target, load: Load) -> Result<Sample> {
    let output = command(target, load)?.output().context("running fio")?;
    sample(&output, load, |status| status.success())
}

/// How long a load that goes on until it is ended may do so, in seconds.
const ENDLESS: u32 = 3600;
/// fio's exit code after a signal that it has obeyed.
const INTERRUPTED: i32 = 128;

/// A load that goes on until it is ended; killed when it is dropped.
#[derive(Debug)]
pub struct Underway {
    fio: Option<Child>,
    load: Load,
}

impl Underway {
    /// Starts `load` on `target`, `rate` requests a second.
    pub fn start(target: &Target, load: Load, rate: u32) -> Result<Self> {
        let load = Load { seconds: ENDLESS, ..load };
        let mut command = command(target, load)?;
        command.arg(format!("--rate_iops={rate}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self { fio: Some(command.spawn().context("starting fio")?), load })
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it had ended, or saw an I/O error.
    pub fn end(mut self) -> Result<Sample> {
        let mut fio = self.fio.take().context("it is ended once")?;
        let before = fio.try_wait()?;
        if before.is_none() {
            // SAFETY: a signal to a child that has not been waited for.
            unsafe { libc::kill(i32::try_from(fio.id())?, libc::SIGINT) };
        }
        let output = fio.wait_with_output()?;
        sample(&output, self.load, |status| {
            before.is_none() && status.code().is_none_or(|code| code == 0 || code == INTERRUPTED)
        })
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(mut fio) = self.fio.take() {
            let _ = fio.kill();
            let _ = fio.wait();
        }
    }
}
