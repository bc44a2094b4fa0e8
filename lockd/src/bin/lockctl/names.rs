//! Resources as a person names them.

use std::io::{BufRead, ErrorKind};
use std::path::Path;

use anyhow::{Context, bail};
use lockd::ids::ResourceId;
use lockd::local::xattr::resource_name;

/// The resource of a name: itself, or what the mount says of the path.
pub(crate) fn resource(name: &str) -> anyhow::Result<ResourceId> {
    if let Ok(resource) = name.parse() {
        return Ok(resource);
    }
    match resource_name(Path::new(name)) {
        Ok(told) => Ok(told.parse()?),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no file {name}, and it is no resource such as volume/UUID/file/INODE or vm/NAME")
        }
        Err(error)
            if error.raw_os_error() == Some(libc::ENODATA) || error.kind() == ErrorKind::Unsupported =>
        {
            bail!("{name} is not on a volume of a cluster: no csvfs mount knows it")
        }
        Err(error) => Err(error).with_context(|| format!("asking the mount about {name}")),
    }
}

/// The resources of names; `-` stands for the lines of standard input.
pub(crate) fn resources(names: &[String]) -> anyhow::Result<Vec<ResourceId>> {
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        if name == "-" {
            for line in std::io::stdin().lock().lines() {
                let line = line?;
                if !line.trim().is_empty() {
                    found.push(resource(line.trim())?);
                }
            }
        } else {
            found.push(resource(name)?);
        }
    }
    Ok(found)
}
