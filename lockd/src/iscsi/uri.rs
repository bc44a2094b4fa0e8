//! The name of an iSCSI logical unit: libiscsi's URL, and where the secret of CHAP is kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port of iSCSI.
const PORT: u16 = 3260;
/// The longest name of a target or an initiator, in bytes (RFC 3720).
const NAME_MAX: usize = 223;
/// The longest user or secret that libiscsi takes, in bytes.
const SECRET_MAX: usize = 255;
/// The largest logical unit number with flat addressing.
const LUN_MAX: u16 = 0x3fff;
/// The variable of the environment that holds the secret if the URL names none.
const SECRET_VARIABLE: &str = "CSV_ISCSI_SECRET";
/// Where Debian's initiator keeps the host's name.
const INITIATOR_FILE: &str = "/etc/iscsi/initiatorname.iscsi";
/// What the name begins with that a host has without that file.
const INITIATOR_OURS: &str = "iqn.2026-01.csvfs:";

/// As what a session is begun, for targets that take the initiator's name alone for who somebody is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Role {
    /// A mount, or anybody who reads: the initiator's own name.
    #[default]
    Mount,
    /// The node itself, which holds the reservation and fences: `NAME:node`.
    Node,
    /// A drill or a trial: `NAME:drill`.
    Drill,
}

/// `iscsi://[USER[%SECRET]@]HOST[:PORT]/TARGET/LUN[?secret-file=PATH][&initiator=NAME][&roles=named]`.
///
/// The secret never appears in what it is shown as.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IscsiUri {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The target's name.
    pub target: String,
    /// The unit's number.
    pub lun: u16,
    /// Who logs in by CHAP.
    pub user: Option<String>,
    secret: Option<String>,
    secret_file: Option<PathBuf>,
    initiator: Option<String>,
    /// Each role has a name of its own.
    has_named_roles: bool,
    role: Role,
}

/// What is wrong with the name of a unit. The URL is not repeated: it may hold a secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the URL iscsi://{shown} is wrong: {why}; write iscsi://[USER@]HOST[:PORT]/TARGET/LUN[?secret-file=PATH]"
)]
pub struct IscsiUriError {
    shown: String,
    why: String,
}

/// Why the secret of CHAP is not known.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("the CHAP secret cannot be read from {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Others may read the file.
    #[error("the CHAP secret in {path} can be read by others (mode {mode:o}): chmod 600 it")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is none.
    #[error("the CHAP secret in {path} is no line of 1 to 255 bytes")]
    Wrong {
        /// The file.
        path: PathBuf,
    },
    /// There is a user, and no secret.
    #[error(
        "the CHAP user {user} has no secret: give the file that holds it by ?secret-file=PATH, \
         or itself in the variable CSV_ISCSI_SECRET"
    )]
    Missing {
        /// The user.
        user: String,
    },
}

impl IscsiUri {
    /// The user and the secret of CHAP, if there is a user. Reads the secret's file.
    ///
    /// # Errors
    /// If there is a user and no secret that could be used.
    pub fn chap(&self) -> Result<Option<(String, String)>, SecretError> {
        let Some(user) = self.user.clone() else { return Ok(None) };
        if let Some(secret) = self.secret.clone() {
            return Ok(Some((user, secret)));
        }
        let Some(path) = &self.secret_file else {
            let secret = std::env::var(SECRET_VARIABLE).ok().filter(|secret| is_secret(secret));
            return secret.map(|secret| Some((user.clone(), secret))).ok_or(SecretError::Missing { user });
        };
        Ok(Some((user, read_secret(path)?)))
    }

    /// The variable by which another process that is given this URL as text finds the secret, which the text does not hold.
    #[must_use]
    pub fn secret_variable(&self) -> Option<(&'static str, &str)> {
        self.secret.as_deref().map(|secret| (SECRET_VARIABLE, secret))
    }

    /// The same unit, for a session of this role. Its text stays the same.
    #[must_use]
    pub fn as_role(&self, role: Role) -> Self {
        Self { role, ..self.clone() }
    }

    /// The name that this host gives itself: of the URL, of the host's own initiator, or made of the host's name; and if
    /// the URL wants that, what it is made as.
    #[must_use]
    pub fn initiator(&self) -> String {
        match self.role {
            Role::Node if self.has_named_roles => format!("{}:node", self.host_initiator()),
            Role::Drill if self.has_named_roles => format!("{}:drill", self.host_initiator()),
            Role::Mount | Role::Node | Role::Drill => self.host_initiator(),
        }
    }

    fn host_initiator(&self) -> String {
        if let Some(name) = &self.initiator {
            return name.clone();
        }
        let file = std::fs::read_to_string(INITIATOR_FILE).unwrap_or_default();
        let named = file.lines().find_map(|line| line.trim().strip_prefix("InitiatorName="));
        if let Some(name) = named.filter(|name| is_name(name)) {
            return name.to_owned();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let fits = |c: &char| c.is_ascii_alphanumeric() || ".-".contains(*c);
        let host: String = host.trim().to_lowercase().chars().filter(fits).take(64).collect();
        format!("{INITIATOR_OURS}{}", if host.is_empty() { "host" } else { &host })
    }

    /// Where the target listens, as libiscsi wants it.
    #[must_use]
    pub fn portal(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The same with the paths of its files made absolute by `absolute`.
    #[must_use]
    pub fn with_files(mut self, absolute: impl FnOnce(&Path) -> PathBuf) -> Self {
        self.secret_file = self.secret_file.as_deref().map(absolute);
        self
    }
}

fn read_secret(path: &Path) -> Result<String, SecretError> {
    use std::os::unix::fs::PermissionsExt;
    let unread = |source| SecretError::File { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(unread)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SecretError::Open { path: path.to_owned(), mode: mode & 0o777 });
    }
    let text = std::fs::read_to_string(path).map_err(unread)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if !is_secret(secret) {
        return Err(SecretError::Wrong { path: path.to_owned() });
    }
    Ok(secret.to_owned())
}

fn is_secret(text: &str) -> bool {
    (1..=SECRET_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_graphic() && !"/?&@%".contains(c);
    (1..=NAME_MAX).contains(&text.len()) && text.chars().all(fits)
}

impl FromStr for IscsiUri {
    type Err = IscsiUriError;

    fn from_str(text: &str) -> Result<Self, IscsiUriError> {
        let rest = text.strip_prefix("iscsi://").unwrap_or(text);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let wrong = |why: &str| IscsiUriError { shown: place.to_owned(), why: why.to_owned() };
        let mut parts = place.split('/');
        let (Some(portal), Some(target), Some(lun), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong("a host, a target and a LUN are needed, with a slash between them"));
        };
        let (host, port) = portal_of(portal).map_err(|why| wrong(&why))?;
        // libiscsi writes the colon as %3A, and others do so, too.
        let target = target.replace("%3A", ":").replace("%3a", ":");
        if !is_name(&target) {
            return Err(wrong("the target has a name such as iqn.2026-01.com.example:vms"));
        }
        let lun = lun.parse().ok().filter(|number| *number <= LUN_MAX);
        let lun = lun.ok_or_else(|| wrong("the LUN is a number from 0 to 16383"))?;
        let (user, secret) = match login.map(|login| login.split_once('%').unwrap_or((login, ""))) {
            None => (None, None),
            Some((user, _)) if !is_secret(user) => return Err(wrong("the user is empty or too long")),
            Some((user, "")) => (Some(user.to_owned()), None),
            Some((user, secret)) if is_secret(secret) => (Some(user.to_owned()), Some(secret.to_owned())),
            Some(_) => return Err(wrong("the secret is not one line of 1 to 255 bytes")),
        };
        let mut parsed = Self {
            host,
            port,
            target,
            lun,
            user,
            secret,
            secret_file: None,
            initiator: None,
            has_named_roles: false,
            role: Role::Mount,
        };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("secret-file", path)) if !path.is_empty() && !path.contains('\0') => {
                    parsed.secret_file = Some(path.into());
                }
                Some(("initiator", name)) if is_name(name) => parsed.initiator = Some(name.to_owned()),
                Some(("roles", "named")) => parsed.has_named_roles = true,
                _ => {
                    return Err(wrong(
                        "known parameters are secret-file=PATH, initiator=NAME and roles=named",
                    ));
                }
            }
        }
        if parsed.secret_file.is_some() && (parsed.user.is_none() || parsed.secret.is_some()) {
            return Err(wrong("secret-file holds the secret of a USER@ that has none in the URL"));
        }
        Ok(parsed)
    }
}

fn portal_of(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the host's bracket is not closed")?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| "brackets hold an IPv6 address")?;
            (host, after.strip_prefix(':').or(if after.is_empty() { None } else { Some("") }))
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || !host.chars().all(|c| c.is_ascii_graphic() && !"%[]?".contains(c)) {
        return Err("the host is missing, or holds a character that no host name has".to_owned());
    }
    let digits = |port: &&str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        None => Some(PORT),
        Some(port) => Some(port).filter(digits).and_then(|port| port.parse().ok()).filter(|port| *port > 0),
    };
    Ok((host.to_owned(), port.ok_or("the port is not a number from 1 to 65535")?))
}

impl fmt::Display for IscsiUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("iscsi://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if self.port != PORT {
            write!(f, ":{}", self.port)?;
        }
        write!(f, "/{}/{}", self.target, self.lun)?;
        let mut mark = '?';
        if let Some(path) = &self.secret_file {
            write!(f, "{mark}secret-file={}", path.display())?;
            mark = '&';
        }
        if let Some(name) = &self.initiator {
            write!(f, "{mark}initiator={name}")?;
            mark = '&';
        }
        if self.has_named_roles {
            write!(f, "{mark}roles=named")?;
        }
        Ok(())
    }
}

impl fmt::Debug for IscsiUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IscsiUri({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn uri(text: &str) -> IscsiUri {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_form_is_read_and_written_back() {
        for text in [
            "iscsi://10.78.0.9/iqn.2026-01.lab:vms/1",
            "iscsi://storage.example:3261/iqn.2026-01.lab:vms/0",
            "iscsi://[fd00::1]:3261/iqn.2026-01.lab:vms/16383",
            "iscsi://me@host/iqn.2026-01.lab:vms/1?secret-file=/etc/secret",
            "iscsi://me@host/iqn.2026-01.lab:vms/1?secret-file=/etc/secret&initiator=iqn.2026-01.lab:n1",
            "iscsi://host/iqn.2026-01.lab:vms/1?initiator=iqn.2026-01.lab:n1&roles=named",
        ] {
            assert_eq!(uri(text).to_string(), text);
        }
        let plain = uri("iscsi://h/iqn.x%3Ay/2");
        assert_eq!((plain.target.as_str(), plain.lun, plain.portal().as_str()), ("iqn.x:y", 2, "h:3260"));
        assert!(plain.initiator().starts_with("iqn."));
        assert_eq!(uri("iscsi://[::1]/t/0").portal(), "[::1]:3260");
    }

    #[test]
    fn roles_have_names_of_their_own_where_that_is_asked_for() {
        let roles = [Role::Mount, Role::Node, Role::Drill];
        let names = |text: &str| roles.map(|role| uri(text).as_role(role).initiator());
        assert_eq!(names("iscsi://h/t/0?initiator=iqn.x:a"), ["iqn.x:a"; 3]);
        let named = names("iscsi://h/t/0?initiator=iqn.x:a&roles=named");
        assert_eq!(named, ["iqn.x:a", "iqn.x:a:node", "iqn.x:a:drill"]);
        let one = uri("iscsi://h/t/0?roles=named");
        assert_eq!(one.to_string(), one.as_role(Role::Node).to_string(), "ids of sessions are made of it");
        assert!("iscsi://h/t/0?roles=many".parse::<IscsiUri>().is_err());
    }

    #[test]
    fn errors_name_what_is_wrong_and_no_secret() {
        for (text, part) in [
            ("iscsi://h/t", "with a slash between"),
            ("iscsi:///t/0", "the host is missing"),
            ("iscsi://h:0/t/0", "the port"),
            ("iscsi://h:+1/t/0", "the port"),
            ("iscsi://[::1/t/0", "bracket"),
            ("iscsi://h/t/16384", "0 to 16383"),
            ("iscsi://h/t t/0", "a name such as"),
            ("iscsi://@h/t/0", "the user is empty"),
            ("iscsi://h/t/0?speed=9", "known parameters"),
            ("iscsi://h/t/0?secret-file=/x", "USER@"),
            ("iscsi://u%hunter2@h/t/0?secret-file=/x", "USER@"),
            ("iscsi://u%hunter2@h/t/0/1", "with a slash between"),
            ("iscsi://u%hunter2@/t/0", "the host is missing"),
        ] {
            let error = text.parse::<IscsiUri>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_secret_is_used_and_never_shown() {
        let inside = uri("iscsi://me%hunter2@h/t/0");
        assert_eq!(inside.chap().unwrap(), Some(("me".to_owned(), "hunter2".to_owned())));
        assert!(!format!("{inside} {inside:?}").contains("hunter2"));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "hunter2\n").unwrap();
        let by_file = uri(&format!("iscsi://me@h/t/0?secret-file={}", path.display()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(by_file.chap(), Err(SecretError::Open { mode: 0o644, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(by_file.chap().unwrap(), Some(("me".to_owned(), "hunter2".to_owned())));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(by_file.chap(), Err(SecretError::Wrong { .. })));
        assert!(matches!(uri("iscsi://me@h/t/0").chap(), Err(SecretError::Missing { .. })));
        assert_eq!(uri("iscsi://h/t/0").chap().unwrap(), None);
    }
}
