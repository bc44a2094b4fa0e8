//! Mount options, as mount(8) and fstab write them.

use super::caching::Caching;

/// The defaults of [`MountOptions::threads`].
const THREADS: u8 = 2;
/// The longest read or write of the kernel, in bytes.
const READ_MAX: u32 = 1 << 20;
/// How far the kernel reads ahead of a sequential reader, in KiB.
const READ_AHEAD_KIB: u32 = 1024;

/// How to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// What `/proc/mounts` shows as the source: the volume's name or the LUN's address (`fsname=`).
    pub source: String,
    /// No changes (`ro`).
    pub read_only: bool,
    /// Set-id bits and file capabilities count (`suid`, `nosuid`).
    pub set_id: bool,
    /// Device nodes can be opened (`dev`, `nodev`).
    pub devices: bool,
    /// Programs can be run (`exec`, `noexec`).
    pub programs: bool,
    /// The time of access is kept (`atime`, `noatime`).
    pub access_times: bool,
    /// The time of access of directories is kept (`diratime`, `nodiratime`).
    pub directory_access_times: bool,
    /// Every write is durable when done (`sync`).
    pub synchronous: bool,
    /// Other users than the one who mounts may use the file system (`allow_other`). Permissions are always checked.
    pub allow_other: bool,
    /// The longest read in bytes (`max_read=`).
    pub read_max: u32,
    /// How far the kernel reads ahead of a sequential reader, in KiB; needs root.
    pub read_ahead_kib: u32,
    /// How long the kernel may answer by itself.
    pub caching: Caching,
    /// Threads that take requests from the kernel, at least one.
    pub threads: u8,
}

impl Default for MountOptions {
    /// What mount(8) calls `defaults`: read-write, suid, dev, exec; for all users.
    fn default() -> Self {
        Self {
            source: "csvfs".to_owned(),
            read_only: false,
            set_id: true,
            devices: true,
            programs: true,
            access_times: true,
            directory_access_times: true,
            synchronous: false,
            allow_other: true,
            read_max: READ_MAX,
            read_ahead_kib: READ_AHEAD_KIB,
            caching: Caching::alone(),
            threads: THREADS,
        }
    }
}

/// An option that is not one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionError {
    /// Neither mount(8) nor we have it.
    #[error("unknown mount option {0:?}")]
    Unknown(String),
    /// Its value is not what it should be.
    #[error("mount option {option:?}: {expected}")]
    Value {
        /// The option as written.
        option: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl MountOptions {
    /// Applies a list as it stands behind `-o`: options separated by commas, the last one counts. What mount(8) and
    /// fstab keep for themselves (`auto`, `_netdev`, `nofail`, `user`, `x-...`) is accepted and means nothing here.
    pub fn apply(&mut self, list: &str) -> Result<(), OptionError> {
        list.split(',').filter(|option| !option.is_empty()).try_for_each(|option| self.apply_one(option))
    }

    fn apply_one(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("suid", None) => self.set_id = true,
            ("nosuid", None) => self.set_id = false,
            ("dev", None) => self.devices = true,
            ("nodev", None) => self.devices = false,
            ("exec", None) => self.programs = true,
            ("noexec", None) => self.programs = false,
            ("atime" | "relatime" | "strictatime" | "norelatime" | "nostrictatime", None) => {
                self.access_times = true;
            }
            ("noatime", None) => self.access_times = false,
            ("diratime", None) => self.directory_access_times = true,
            ("nodiratime", None) => self.directory_access_times = false,
            ("sync", None) => self.synchronous = true,
            ("async", None) => self.synchronous = false,
            ("allow_other", None) => self.allow_other = true,
            ("fsname", Some(value)) if !value.is_empty() => value.clone_into(&mut self.source),
            ("max_read", Some(value)) => {
                let parsed: Option<u32> = value.parse().ok();
                self.read_max =
                    parsed.filter(|bytes| (4096..=READ_MAX).contains(bytes)).ok_or_else(|| {
                        OptionError::Value {
                            option: option.to_owned(),
                            expected: "bytes, from 4096 to 1048576",
                        }
                    })?;
            }
            // Always on.
            ("defaults" | "default_permissions", None) | ("subtype", Some("csvfs")) => {}
            // mount(8)'s and systemd's own.
            (
                "auto" | "noauto" | "_netdev" | "nofail" | "user" | "nouser" | "users" | "owner" | "group",
                None,
            )
            | ("lazytime" | "nolazytime" | "loud" | "silent" | "iversion" | "noiversion", None)
            | ("user" | "uhelper" | "helper" | "comment", Some(_)) => {}
            _ if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => return Err(OptionError::Unknown(option.to_owned())),
        }
        Ok(())
    }

    /// The flags of mount(2).
    pub(super) fn flags(&self) -> libc::c_ulong {
        let flag = |on: bool, flag: libc::c_ulong| if on { flag } else { 0 };
        flag(self.read_only, libc::MS_RDONLY)
            | flag(!self.set_id, libc::MS_NOSUID)
            | flag(!self.devices, libc::MS_NODEV)
            | flag(!self.programs, libc::MS_NOEXEC)
            | flag(!self.access_times, libc::MS_NOATIME)
            | flag(!self.directory_access_times, libc::MS_NODIRATIME)
            | flag(self.synchronous, libc::MS_SYNCHRONOUS)
    }

    /// The data of mount(2).
    pub(super) fn data(&self, descriptor: i32, user: u32, group: u32) -> String {
        let others = if self.allow_other { ",allow_other" } else { "" };
        let (root_mode, read_max) = (libc::S_IFDIR, self.read_max);
        format!(
            "fd={descriptor},rootmode={root_mode:o},user_id={user},group_id={group},max_read={read_max},\
             default_permissions{others}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_contradicting_options_counts() {
        let mut options = MountOptions::default();
        options
            .apply("ro,nosuid,nodev,noexec,noatime,_netdev,x-systemd.automount,rw,fsname=vms,max_read=65536")
            .unwrap();
        assert!(!options.read_only && !options.set_id && !options.devices && !options.programs);
        assert_eq!(options.flags(), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOATIME);
        assert_eq!(options.source, "vms");
        assert_eq!(
            options.data(7, 0, 0),
            "fd=7,rootmode=40000,user_id=0,group_id=0,max_read=65536,default_permissions,allow_other"
        );
    }

    #[test]
    fn nonsense_is_named() {
        let mut options = MountOptions::default();
        assert_eq!(options.apply("ro,bogus"), Err(OptionError::Unknown("bogus".to_owned())));
        let text = options.apply("max_read=1").unwrap_err().to_string();
        assert_eq!(text, "mount option \"max_read=1\": bytes, from 4096 to 1048576");
    }
}
