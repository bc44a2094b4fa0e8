//! Resources as a person names them.

use std::io::BufRead;
use std::path::Path;

use anyhow::Context;
use lockd::ids::ResourceId;
use lockd::local::xattr::resource_name;

/// The resource of a name: itself, or what the mount says of the path.
pub(crate) fn resource(name: &str) -> anyhow::Result<ResourceId> {
    if let Ok(resource) = name.parse() {
        return Ok(resource);
    }
    let told = resource_name(Path::new(name));
    let told =
        told.with_context(|| format!("{name} is no resource, and no file of a mounted csvfs volume"))?;
    Ok(told.parse()?)
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
