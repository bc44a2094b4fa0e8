//! A real source tree: unpacked on one node, compiled on another, compared on the third.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::volume::with_three_mounts;

/// The package whose source is used: of some size, and with one dependency.
const PACKAGE: &str = "redb";

const PROGRAM: &str = r#"
use redb::{Database, ReadableDatabase, TableDefinition};
const TABLE: TableDefinition<u64, u64> = TableDefinition::new("squares");
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("the path of a store")?;
    let store = Database::create(path)?;
    let writing = store.begin_write()?;
    {
        let mut table = writing.open_table(TABLE)?;
        for number in 0..1000 { table.insert(number, number * number)?; }
    }
    writing.commit()?;
    let table = store.begin_read()?.open_table(TABLE)?;
    println!("{}", table.get(999)?.ok_or("it is there")?.value());
    Ok(())
}
"#;

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn done(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where cargo keeps the source of [`PACKAGE`], in the version that the workspace is built with.
fn source() -> Result<PathBuf> {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"))?;
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{PACKAGE}\""));
    let version =
        lines.nth(1).and_then(|line| line.strip_prefix("version = ")).context("the workspace uses it")?;
    let name = format!("{PACKAGE}-{}", version.trim_matches('"'));
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))
        .context("cargo's home")?;
    let registries = std::fs::read_dir(home.join("registry/src")).context("cargo's sources")?;
    let mut found = registries.flatten().map(|registry| registry.path().join(&name));
    found.find(|path| path.exists()).with_context(|| format!("cargo has no source of {name}"))
}

/// Packs the source and a small program that uses it; gives the archive.
fn pack(scratch: &Path) -> Result<PathBuf> {
    let program = scratch.join("program");
    std::fs::create_dir_all(program.join("src"))?;
    std::fs::write(program.join("src/main.rs"), PROGRAM)?;
    std::fs::write(
        program.join("Cargo.toml"),
        format!(
            "[package]\nname = \"program\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n\
             exclude = [\"../{PACKAGE}\"]\n[dependencies]\n{PACKAGE} = {{ path = \"../{PACKAGE}\" }}\n"
        ),
    )?;
    let source = source()?;
    let name = source.file_name().context("a package has a name")?.to_str().context("in plain text")?;
    let archive = scratch.join("tree.tar");
    done(
        Command::new("tar")
            .arg("-cf")
            .arg(&archive)
            .arg(format!("--transform=s,^{name},{PACKAGE},"))
            .arg("-C")
            .arg(scratch)
            .arg("program")
            .arg("-C")
            .arg(source.parent().context("beside others")?)
            .arg(name),
    )?;
    Ok(archive)
}

/// Every file below `folder`, by its path in it, with its contents.
fn contents(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let (mut all, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_type()?.is_file() {
                let name = entry.path().strip_prefix(folder)?.to_owned();
                all.insert(name, std::fs::read(entry.path())?);
            }
        }
    }
    Ok(all)
}

#[test]
fn a_source_tree_is_unpacked_here_compiled_there_and_compared_on_the_third_node() -> Result<()> {
    let scratch = TempDir::new()?;
    let archive = pack(scratch.path())?;
    let beside = scratch.path().join("beside");
    std::fs::create_dir(&beside)?;
    done(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&beside))?;
    with_three_mounts(|cluster| {
        let tree = |number: u8| cluster.path(number, "tree");
        std::fs::create_dir(tree(1))?;
        done(cluster.exec("n1", "tar")?.arg("-xf").arg(&archive).arg("-C").arg(tree(1)))?;

        let cargo = cargo();
        done(
            cluster
                .exec("n2", cargo.get_program())?
                .args(["build", "--quiet", "--offline", "--target-dir"])
                .arg(cluster.path(2, "built"))
                .current_dir(tree(2).join("program"))
                .env_remove("CARGO_TARGET_DIR")
                .env_remove("RUSTFLAGS"),
        )?;

        let (unpacked, mut found) = (contents(&beside)?, contents(&tree(3))?);
        // cargo has made this one.
        found.remove(Path::new("program/Cargo.lock")).context("cargo has written its lock file")?;
        ensure!(unpacked.len() > 50, "{} files are no source tree", unpacked.len());
        for (name, bytes) in &unpacked {
            ensure!(found.get(name) == Some(bytes), "{} is not what was unpacked", name.display());
        }
        ensure!(unpacked.len() == found.len(), "{} files came from nowhere", found.len() - unpacked.len());
        let built = [1, 2, 3].map(|number| contents(&cluster.path(number, "built")));
        let [first, second, third] = built;
        let (first, second, third) = (first?, second?, third?);
        ensure!(first == second && second == third, "the nodes do not see what was built alike");
        // What was linked on one node runs on the third, and its store is on the mount.
        let program = cluster.path(3, "built/debug/program");
        let said = done(cluster.exec("n3", &program)?.arg(cluster.path(3, "store.redb")))?;
        ensure!(said.trim() == "998001", "{said}");
        let store = std::fs::read(cluster.path(1, "store.redb"))?;
        ensure!(store == std::fs::read(cluster.path(2, "store.redb"))?, "the store differs by node");
        eprintln!("{} files unpacked, {} built", unpacked.len(), third.len());
        Ok(())
    })
}
