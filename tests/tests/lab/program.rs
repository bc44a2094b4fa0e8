//! The program `lab`, as a person uses it.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lab::cluster::{State, is_mounted};
use lab::content;
use serde_json::Value;
use tempfile::TempDir;

use crate::traces;

fn lab(base: &Path, arguments: &str) -> Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_lab"))
        .arg("--dir")
        .arg(base)
        .args(arguments.split(' '))
        .output()
        .with_context(|| format!("lab {arguments}"))
}

fn fine(base: &Path, arguments: &str) -> Result<String> {
    let output = lab(base, arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "lab {arguments} failed ({}): {errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn refused(base: &Path, arguments: &str, saying: &str) -> Result<()> {
    let output = lab(base, arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "lab {arguments} should fail with 1: {output:?}");
    ensure!(errors.contains(saying), "lab {arguments} does not say {saying:?}, but: {errors}");
    Ok(())
}

/// The state of a daemon in what `lab status --json` says.
fn state_of(status: &Value, host: &str, daemon: &str) -> Option<String> {
    let all = status["daemons"].as_array()?;
    let found = all.iter().find(|entry| entry["host"] == host && entry["name"] == daemon)?;
    found["state"].as_str().map(str::to_owned)
}

fn play(base: &Path) -> Result<()> {
    let status = || -> Result<Value> { Ok(serde_json::from_str(&fine(base, "status --json")?)?) };
    refused(base, "up --nodes 2", "there is a lab demo already")?;
    let mount = base.join("demo/n1/mnt");
    ensure!(is_mounted(&mount), "n1 has no mount");
    content::fill(&mount.join("file"), 1, 16)?;
    let there = status()?;
    ensure!(there["nodes"][0]["mounted"] == true && there["nodes"][1]["mounted"] == false, "{there}");
    ensure!(there["nodes"][1]["san"] == "10.78.0.2", "{there}");

    // The command's own exit code, on the node's network.
    let output = lab_exec(base, &["n2", "sh", "-c", "ip -brief address show lan; exit 7"])?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stdout).contains("10.77.0.2/24"), "{output:?}");
    refused(base, "exec n9 true", "the lab has n1, n2")?;
    refused(base, "exec n1 no-such-program", "running no-such-program on n1")?;

    fine(base, "cut n2 lan")?;
    fine(base, "cut n1 san --from n2")?;
    ensure!(status()?["cuts"].as_array().map(Vec::len) == Some(3), "{}", status()?);
    ensure!(fine(base, "status")?.contains("cut: lan of n2"), "{}", fine(base, "status")?);
    fine(base, "heal n2 lan")?;
    fine(base, "heal n1 san --from n2")?;
    ensure!(status()?["cuts"] == serde_json::json!([]), "{}", status()?);
    fine(base, "shape n1 san 1M")?;
    fine(base, "shape n1 san none")?;

    fine(base, "pause n1 csvfs")?;
    ensure!(state_of(&status()?, "n1", "csvfs").as_deref() == Some("paused"), "{}", status()?);
    fine(base, "resume n1 csvfs")?;
    fine(base, "kill n1 csvfs")?;
    ensure!(state_of(&status()?, "n1", "csvfs").as_deref() == Some("ended"), "{}", status()?);
    refused(base, "kill n1 csvfs", "n1/csvfs does not run")?;
    fine(base, "start n1 csvfs")?;
    content::check(&mount.join("file"), 1, 16)
}

fn lab_exec(base: &Path, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    Ok(command.arg("--dir").arg(base).arg("exec").args(words).output()?)
}

#[test]
fn a_person_makes_a_lab_plays_with_it_and_ends_it() -> Result<()> {
    let base = TempDir::new()?;
    let base = base.path();
    refused(base, "status", "there is no lab demo")?;
    refused(base, "down", "there is no lab demo")?;
    refused(base, "up --nodes 99", "99 nodes: a lab has 1 to 64")?;
    fine(base, "up --nodes 2 --standalone --size 200M")?;
    let folder = base.join("demo");
    let played = play(base);
    let processes = State::read(&folder).map(|state| state.processes());
    let down = fine(base, "down");
    played?;
    down?;
    traces::none("demo", &folder, &processes?)?;
    refused(base, "down", "there is no lab demo")
}
