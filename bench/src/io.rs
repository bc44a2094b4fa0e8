//! File data: the mount beside the raw LUN, and beside other ways to see one.

use std::path::Path;

use anyhow::Result;
use lab::Server;
use lab::server::Kind;

use crate::figure::{Bar, Rounds, Row};
use crate::fio::{Load, Target, run};
use crate::stage::{Effort, NullMount, Peer, Volume, fill};

const LUN: u64 = 2 << 30;
const FILE: u64 = 1 << 30;

fn load(rw: &'static str, request: u32, depth: u32, effort: Effort) -> Load {
    Load { rw, request, depth, size: FILE, seconds: effort.seconds }
}

/// Everything measured on `nbdkit memory`: random, depth 1, sequential, against the raw LUN and the peers.
pub fn on_nbd(folder: &Path, effort: Effort) -> Result<Vec<Row>> {
    let raw_folder = folder.join("raw");
    std::fs::create_dir_all(&raw_folder)?;
    let raw = Server::start(Kind::NbdkitMemory, &raw_folder, LUN)?;
    run(&Target::Nbd(raw.url()), Load { rw: "write", request: 1 << 20, depth: 4, size: FILE, seconds: 0 })?;
    let volume = Volume::served(Kind::NbdkitMemory, &folder.join("volume"), LUN)?;
    let file = volume.prepared_file("data", FILE)?;
    let nbdfuse = Peer::nbdfuse(&folder.join("nbdfuse"), LUN)?;
    let daemon = Peer::storage_daemon(&folder.join("qsd"), LUN)?;
    for peer in [&nbdfuse.file, &daemon.file] {
        run(&Target::file(peer), Load { rw: "write", request: 1 << 20, depth: 4, size: FILE, seconds: 0 })?;
    }
    let null = NullMount::new(&folder.join("null"), FILE)?;

    let (ours, raw) = (Target::file(&file), Target::Nbd(raw.url()));
    let peers =
        [("nbdfuse", Target::file(&nbdfuse.file)), ("qemu-storage-daemon", Target::file(&daemon.file))];
    let mut rows = Vec::new();
    for rw in ["randread", "randwrite"] {
        rows.extend(against(rw, load(rw, 4096, 32, effort), &ours, &raw, &peers, 0.7, effort)?);
    }
    for rw in ["read", "write"] {
        rows.extend(against(rw, load(rw, 1 << 20, 4, effort), &ours, &raw, &peers, 0.85, effort)?);
    }
    for rw in ["randread", "randwrite"] {
        rows.extend(latency(rw, &ours, &raw, &Target::file(&null.file), &peers, effort)?);
    }
    Ok(rows)
}

fn against(
    rw: &str,
    load: Load,
    ours: &Target,
    raw: &Target,
    peers: &[(&str, Target)],
    bar: f64,
    effort: Effort,
) -> Result<Vec<Row>> {
    let mut rounds = Rounds::default();
    for _ in 0..effort.rounds {
        let mut values = vec![run(ours, load)?.iops, run(raw, load)?.iops];
        for (_, peer) in peers {
            values.push(run(peer, load)?.iops);
        }
        rounds.add(values);
    }
    let what = format!("{rw}, {} KiB, depth {}", load.request >> 10, load.depth);
    let ratio = rounds.derived(|round| round[0] / round[1]);
    let mut rows = vec![Row {
        what: format!("{what}, against the raw LUN (fio nbd)"),
        measured: format!("{} against {} requests/s", rounds.contender(0), rounds.contender(1)),
        figure: ratio.to_string(),
        bar: Bar::AtLeast(bar).to_string(),
        kept: Bar::AtLeast(bar).kept(ratio.median),
    }];
    for (i, (name, _)) in peers.iter().enumerate() {
        let ratio = rounds.derived(|round| round[0] / round[2 + i]);
        rows.push(Row {
            what: format!("{what}, against {name}"),
            measured: format!("{} against {} requests/s", rounds.contender(0), rounds.contender(2 + i)),
            figure: ratio.to_string(),
            bar: Bar::AtLeast(1.0).to_string(),
            kept: Bar::AtLeast(1.0).kept(ratio.median),
        });
    }
    Ok(rows)
}

fn latency(
    rw: &'static str,
    ours: &Target,
    raw: &Target,
    null: &Target,
    peers: &[(&str, Target)],
    effort: Effort,
) -> Result<Vec<Row>> {
    let load = load(rw, 4096, 1, effort);
    let mut rounds = Rounds::default();
    for _ in 0..effort.rounds {
        let mut values =
            vec![run(ours, load)?.latency_us, run(raw, load)?.latency_us, run(null, load)?.latency_us];
        for (_, peer) in peers {
            values.push(run(peer, load)?.latency_us);
        }
        rounds.add(values);
    }
    let ratio = rounds.derived(|round| round[0] / (round[1] + round[2]));
    let mut rows = vec![Row {
        what: format!(
            "{rw}, 4 KiB, depth 1: mean latency against raw LUN + a FUSE mount that answers at once"
        ),
        measured: format!(
            "{} us against {} + {} us",
            rounds.contender(0),
            rounds.contender(1),
            rounds.contender(2)
        ),
        figure: ratio.to_string(),
        bar: Bar::AtMost(1.2).to_string(),
        kept: Bar::AtMost(1.2).kept(ratio.median),
    }];
    for (i, (name, _)) in peers.iter().enumerate() {
        let ratio = rounds.derived(|round| round[0] / round[3 + i]);
        rows.push(Row {
            what: format!("{rw}, 4 KiB, depth 1: mean latency against {name}"),
            measured: format!("{} against {} us", rounds.contender(0), rounds.contender(3 + i)),
            figure: ratio.to_string(),
            bar: Bar::AtMost(1.0).to_string(),
            kept: Bar::AtMost(1.0).kept(ratio.median),
        });
    }
    Ok(rows)
}

/// A volume on a local file against the same kind of file by itself, with O_DIRECT.
pub fn on_file(folder: &Path, effort: Effort) -> Result<Vec<Row>> {
    std::fs::create_dir_all(folder)?;
    let volume = Volume::on_file(&folder.join("volume"), LUN)?;
    let file = volume.prepared_file("data", FILE)?;
    let beside = folder.join("beside");
    fill(&beside, FILE)?;
    let mut rows = Vec::new();
    for rw in ["randread", "randwrite"] {
        let load = load(rw, 4096, 32, effort);
        let mut rounds = Rounds::default();
        for _ in 0..effort.rounds {
            rounds.add(vec![run(&Target::file(&file), load)?.iops, run(&Target::file(&beside), load)?.iops]);
        }
        let ratio = rounds.derived(|round| round[0] / round[1]);
        rows.push(Row {
            what: format!("{rw}, 4 KiB, depth 32, LUN on a local file, against that file"),
            measured: format!("{} against {} requests/s", rounds.contender(0), rounds.contender(1)),
            figure: ratio.to_string(),
            bar: Bar::AtLeast(0.6).to_string(),
            kept: Bar::AtLeast(0.6).kept(ratio.median),
        });
    }
    Ok(rows)
}

/// A sequential write into a new thin file against the same file preallocated and written.
pub fn thin(folder: &Path, effort: Effort) -> Result<Vec<Row>> {
    let volume = Volume::served(Kind::NbdkitMemory, folder, 2 * LUN)?;
    let thick = volume.prepared_file("thick", FILE)?;
    let load = Load { rw: "write", request: 1 << 20, depth: 4, size: FILE, seconds: 0 };
    let mut rounds = Rounds::default();
    for round in 0..effort.rounds {
        let thin = volume.mount.path().join(format!("thin-{round}"));
        std::fs::File::create(&thin)?.set_len(FILE)?;
        rounds.add(vec![
            run(&Target::file(&thin), load)?.rate / 1e6,
            run(&Target::file(&thick), load)?.rate / 1e6,
        ]);
        std::fs::remove_file(&thin)?;
    }
    let ratio = rounds.derived(|round| round[0] / round[1]);
    Ok(vec![Row {
        what: "sequential write, 1 MiB, depth 4, into a thin file against a written one".to_owned(),
        measured: format!("{} against {} MB/s", rounds.contender(0), rounds.contender(1)),
        figure: ratio.to_string(),
        bar: Bar::AtLeast(0.8).to_string(),
        kept: Bar::AtLeast(0.8).kept(ratio.median),
    }])
}
