//! Crashes: a volume on a LUN that records, and every kind of image that a power cut could leave of it. Each is opened
//! again: what was acknowledged is there (invariant 5), nothing foreign is (invariant 8), and fsck finds nothing.

mod history;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use csvfs::volume::{Settings, Volume};
use history::{History, Step, workload};
use lab::model::Served;
use lockd::rules::Rules;
use parking_lot::Mutex;
use redirector::lun::Lun;
use redirector::memory::{self, MemoryLun};
use redirector::recording::{Completion, CrashState, CrashStates, RecordingLun, Sampling};

/// The LUN's size: small, so that states are cheap, and large enough for the workload.
const SIZE: u64 = 96 << 20;
/// Distinct states that must have been tried in one run of this test (`make test`).
const DISTINCT_MIN: usize = 5_000;

fn settings(rules: Rules) -> Settings {
    Settings {
        rules,
        discard: true,
        commit_every: std::time::Duration::from_millis(5),
        ..Settings::local("crash-test")
    }
}

/// Runs the steps on a recording LUN, marking each when it has been acknowledged.
fn record(steps: &[Step], seed: u64, rules: Rules) -> Result<(redirector::recording::Record, History)> {
    let blank = Arc::new(MemoryLun::new(SIZE));
    let lun: Arc<dyn Lun> = Arc::clone(&blank) as Arc<dyn Lun>;
    csvfs::volume::format(&lun, &csvfs::volume::FormatSettings::default())?;
    let geometry = memory::geometry(SIZE);
    let lun = Arc::new(RecordingLun::new(geometry, blank.snapshot(), Completion::Shuffled(seed)));
    let volume = Volume::open(Arc::clone(&lun) as Arc<dyn Lun>, settings(rules))?;
    let served = Served::new(volume.service());
    let mut history = History::default();
    for (i, step) in steps.iter().enumerate() {
        let expected = history.step(step);
        let have = match step {
            Step::Do(op) => served.apply(op),
            Step::Sync(path) => served.sync(path),
        };
        // Which of two reasons a refusal names is decided by the kernel on a mount, and left open here.
        ensure!(have.is_ok() == expected.is_ok(), "step {i} {step:?}: {have:?}, expected {expected:?}");
        // The mark says that step `i` has been acknowledged.
        lun.mark(i as u64);
    }
    let record = lun.record();
    volume.abandon();
    Ok((record, history))
}

/// Opens what a crash left, and compares it with what may be there.
fn judge(state: &CrashState, history: &History, rules: Rules) -> Result<()> {
    let lun: Arc<dyn Lun> = Arc::new(state.lun(memory::geometry(SIZE)));
    let volume = Volume::open(Arc::clone(&lun), settings(rules)).context("opening")?;
    let seen =
        Served::new(volume.service()).look().map_err(|errno| anyhow::anyhow!("walking: errno {errno}"))?;
    volume.close().context("closing")?;
    let findings = csvfs::fsck::check(&lun).context("fsck")?;
    ensure!(findings.is_empty(), "fsck finds {findings:?}");
    let acknowledged = state.last_mark().map_or(0, |mark| usize::try_from(mark).unwrap_or(usize::MAX) + 1);
    history.judge(acknowledged, &seen)
}

/// Tries the states of one workload; tells how many distinct images there were.
fn try_states(seed: u64, per_point: usize, rules: Rules) -> Result<usize> {
    let steps = workload(seed);
    let (record, history) = record(&steps, seed, rules)?;
    let states = Mutex::new(CrashStates::new(record, Sampling { seed, per_point, ..Sampling::default() }));
    let failures = Mutex::new(BTreeMap::new());
    let tried = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failures.lock().len() < 3 {
                    let Some(state) = states.lock().next() else { return };
                    tried.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = judge(&state, &history, rules) {
                        failures.lock().insert(state.at, format!("{state}: {error:#}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner();
    ensure!(failures.is_empty(), "seed {seed}, after {} states:\n{:#?}", tried.into_inner(), failures);
    let distinct = states.into_inner().distinct_images();
    Ok(distinct)
}

#[test]
fn nothing_acknowledged_is_lost_in_any_crash_state() -> Result<()> {
    let soak = std::env::var_os("CSV_SOAK").is_some();
    let (target, mut seed) = (if soak { 50 * DISTINCT_MIN } else { DISTINCT_MIN }, 1);
    let (mut distinct, start) = (0, std::time::Instant::now());
    while distinct < target {
        distinct += try_states(seed, 24, Rules::from_test_environment())?;
        seed += 1;
    }
    println!("{distinct} distinct crash states of {} workloads in {:?}", seed - 1, start.elapsed());
    Ok(())
}
