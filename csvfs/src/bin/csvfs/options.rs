//! Mount options as mount(8) gives them.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result, bail};
use csvfs::fuse::MountOptions;

/// The options of one mount: those of the front end, and whether freed blocks are discarded.
pub fn parse(texts: &[String]) -> Result<(MountOptions, bool)> {
    let mut options = MountOptions::default();
    let mut discard = true;
    for word in texts.iter().flat_map(|text| text.split(',')).map(str::trim) {
        match word {
            "discard" => discard = true,
            "nodiscard" => discard = false,
            "remount" => bail!("remounting is not possible; unmount and mount again"),
            word => options.apply(word)?,
        }
    }
    Ok((options, discard))
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

    #[test]
    fn options_of_mount_are_read() {
        let (options, discard) =
            parse(&["ro,nosuid,_netdev".to_owned(), "nodiscard,x-systemd.automount".to_owned()]).unwrap();
        assert!(options.read_only && !options.set_id && options.programs && !discard);
        assert!(!parse(&["ro,rw".to_owned()]).unwrap().0.read_only);
        assert!(parse(&["suchlike".to_owned()]).unwrap_err().to_string().contains("suchlike"));
        assert!(parse(&["remount,ro".to_owned()]).unwrap_err().to_string().contains("unmount"));
    }

    #[test]
    fn the_helper_speaks_as_mount_does() {
        let words = ["nbd://h/e", "/mnt", "-v", "-o", "rw,noatime"].map(OsString::from);
        let expected =
            ["csvfs", "mount", "-o", "rw,noatime", "--lun", "nbd://h/e", "/mnt"].map(OsString::from);
        assert_eq!(helper_arguments(&words).unwrap(), expected);
        assert!(helper_arguments(&words[..1]).is_err());
        assert!(helper_arguments(&["-q".into()]).is_err());
    }
}
