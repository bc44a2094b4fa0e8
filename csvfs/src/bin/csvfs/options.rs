//! Mount options as mount(8) gives them.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result, bail};

/// The options of one mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    pub read_only: bool,
    pub suid: bool,
    pub dev: bool,
    pub exec: bool,
    pub atime: bool,
    pub allow_other: bool,
    pub discard: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { read_only: false, suid: true, dev: true, exec: true, atime: true, allow_other: true, discard: true }
    }
}

impl MountOptions {
    /// Reads comma-separated options; later ones win. Options of other programs (`x-...`, `_netdev`, `auto`, ...) are
    /// accepted and mean nothing here.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for word in texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "ro" => options.read_only = true,
                "rw" => options.read_only = false,
                "suid" => options.suid = true,
                "nosuid" => options.suid = false,
                "dev" => options.dev = true,
                "nodev" => options.dev = false,
                "exec" => options.exec = true,
                "noexec" => options.exec = false,
                "atime" | "relatime" => options.atime = true,
                "noatime" => options.atime = false,
                "discard" => options.discard = true,
                "nodiscard" => options.discard = false,
                "allow_other" => options.allow_other = true,
                "private" => options.allow_other = false,
                "defaults" => options = Self::default(),
                "auto" | "noauto" | "user" | "nouser" | "users" | "nofail" | "_netdev" | "async" | "diratime"
                | "nodiratime" | "strictatime" | "lazytime" | "nolazytime" => {}
                word if word.starts_with("x-") || word.starts_with("comment=") => {}
                "remount" => bail!("remounting is not possible; unmount and mount again"),
                "sync" | "dirsync" | "mand" => bail!("the mount option {word:?} is not supported"),
                word => bail!(
                    "unknown mount option {word:?}; known: ro rw nosuid nodev noexec noatime nodiscard private, \
                     and those of mount(8) that need nothing from the file system"
                ),
            }
        }
        Ok(options)
    }
}

/// The words of `csvfs mount` for those of `mount.csvfs LUN DIR [-fnsv] [-o OPTIONS] [-t TYPE]`.
pub fn helper_arguments(words: &[OsString]) -> Result<Vec<OsString>> {
    let mut places = Vec::new();
    let mut out: Vec<OsString> = vec!["csvfs".into(), "mount".into()];
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-o") => {
                out.push("-o".into());
                out.push(words.next().context("-o needs options")?.clone());
            }
            Some("-t" | "-N") => drop(words.next()),
            Some("-f") => out.push("--fake".into()),
            Some(flags) if flags.starts_with('-') => {
                if flags.chars().skip(1).any(|flag| !"nsv".contains(flag)) {
                    bail!("unknown flag {flags:?}");
                }
            }
            _ => places.push(word.clone()),
        }
    }
    let [lun, folder]: [OsString; 2] =
        places.try_into().map_err(|_| anyhow::anyhow!("usage: mount.csvfs LUN-URL FOLDER [-o OPTIONS]"))?;
    out.extend([OsStr::new("--lun").to_owned(), lun, folder]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountOptions> {
        MountOptions::parse(&[text.to_owned()])
    }

    #[test]
    fn options_of_mount_are_read() {
        let options = parse("ro,nosuid,_netdev,x-systemd.automount").unwrap();
        assert!(options.read_only && !options.suid && options.exec);
        assert!(!parse("ro,rw").unwrap().read_only);
        assert!(parse("suchlike").unwrap_err().to_string().contains("suchlike"));
        assert!(parse("remount,ro").unwrap_err().to_string().contains("unmount"));
    }

    #[test]
    fn the_helper_speaks_as_mount_does() {
        let words = ["nbd://h/e", "/mnt", "-v", "-o", "rw,noatime"].map(OsString::from);
        let expected = ["csvfs", "mount", "-o", "rw,noatime", "--lun", "nbd://h/e", "/mnt"].map(OsString::from);
        assert_eq!(helper_arguments(&words).unwrap(), expected);
        assert!(helper_arguments(&words[..1]).is_err());
        assert!(helper_arguments(&["-q".into()]).is_err());
    }
}
