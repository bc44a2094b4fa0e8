//! How a LUN is named: NBD URIs, iSCSI URLs, block devices, image files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use lockd::iscsi::{IscsiUri, IscsiUriError};

use crate::nbd::wire;

/// The most connections that a URI may ask for.
pub const CONNECTIONS_MAX: usize = 16;

/// The name of a LUN.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum LunUri {
    /// `nbd://`, `nbds://`, `nbd+unix://`, `nbds+unix://`
    Nbd(NbdUri),
    /// `iscsi://`
    Iscsi(IscsiUri),
    /// `/dev/...`
    Device(PathBuf),
    /// `file:PATH`
    File(PathBuf),
}

/// The name of an NBD export.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NbdUri {
    /// Where the server listens.
    pub endpoint: Endpoint,
    /// The export's name; may be empty.
    pub export: String,
    /// Whether TLS is demanded (`nbds`).
    pub tls: bool,
    /// `tls-certificates=DIR`: `ca-cert.pem`, `client-cert.pem` and `client-key.pem`.
    pub tls_certificates: Option<PathBuf>,
    /// `tls-hostname=NAME`: the name that the server's certificate must carry, if it is not the host's.
    pub tls_hostname: Option<String>,
    /// `connections=N`.
    pub connections: Option<usize>,
    /// `replies=structured`: holes are not sent, at the price of one more message for each read.
    pub structured: bool,
}

/// Where an NBD server listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Endpoint {
    /// A host (name or address, without brackets) and a port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What is wrong with the name of a LUN.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriError {
    /// Neither a known scheme nor a device.
    #[error(
        "{0:?} names no LUN; write nbd://HOST[:PORT]/EXPORT, nbds://..., nbd+unix:///EXPORT?socket=PATH, \
         iscsi://HOST[:PORT]/TARGET/LUN, /dev/... or file:PATH"
    )]
    Scheme(String),
    /// The host is missing, or stands where none may stand.
    #[error("the host {host:?} in {uri:?} is wrong: {why}")]
    Host {
        /// The whole URI.
        uri: String,
        /// The part.
        host: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Not a port.
    #[error("the port {port:?} in {uri:?} is not a number from 1 to 65535")]
    Port {
        /// The whole URI.
        uri: String,
        /// The part.
        port: String,
    },
    /// Too long, or not text.
    #[error("the export name in {uri:?} is wrong: {why}")]
    Export {
        /// The whole URI.
        uri: String,
        /// What is wrong.
        why: &'static str,
    },
    /// An unknown parameter, or a wrong value.
    #[error("the parameter {parameter:?} in {uri:?} is wrong: {why}")]
    Parameter {
        /// The whole URI.
        uri: String,
        /// `name=value` as it stands there.
        parameter: String,
        /// What is wrong.
        why: String,
    },
    /// An iSCSI unit.
    #[error(transparent)]
    Iscsi(#[from] IscsiUriError),
    /// `file:` without a path.
    #[error("{0:?} has no path; write file:PATH")]
    Path(String),
}

impl FromStr for LunUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if let Some(path) = text.strip_prefix("file:") {
            let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
            if path.is_empty() || path.contains('\0') {
                return Err(UriError::Path(text.to_owned()));
            }
            return Ok(Self::File(path.into()));
        }
        if text.starts_with("/dev/") && text.len() > 5 && !text.contains('\0') {
            return Ok(Self::Device(text.into()));
        }
        let (tls, unix, rest) = match text.split_once("://") {
            Some(("nbd", rest)) => (false, false, rest),
            Some(("nbds", rest)) => (true, false, rest),
            Some(("nbd+unix", rest)) => (false, true, rest),
            Some(("nbds+unix", rest)) => (true, true, rest),
            Some(("iscsi", _)) => return Ok(Self::Iscsi(text.parse()?)),
            _ => return Err(UriError::Scheme(text.to_owned())),
        };
        NbdUri::parse(text, tls, unix, rest).map(Self::Nbd)
    }
}

impl NbdUri {
    fn parse(uri: &str, tls: bool, unix: bool, rest: &str) -> Result<Self, UriError> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(export).ok_or_else(|| UriError::Export {
            uri: uri.to_owned(),
            why: "its percent signs do not give text; write %25 for a percent sign",
        })?;
        if export.len() > wire::NAME_MAX {
            let why = "it is longer than 4096 bytes, the limit of NBD";
            return Err(UriError::Export { uri: uri.to_owned(), why });
        }
        let mut parsed = Self {
            endpoint: Endpoint::Unix(PathBuf::new()),
            export,
            tls,
            tls_certificates: None,
            tls_hostname: None,
            connections: None,
            structured: false,
        };
        let mut socket = None;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            parsed.parameter(uri, parameter, unix, &mut socket)?;
        }
        parsed.endpoint = match (unix, socket) {
            (true, Some(path)) if authority.is_empty() => Endpoint::Unix(path),
            (true, Some(_)) => {
                return Err(host(uri, authority, "a Unix socket has none; write three slashes"));
            }
            (true, None) => {
                let why = "it is missing; write ?socket=PATH".to_owned();
                return Err(UriError::Parameter { uri: uri.to_owned(), parameter: "socket".to_owned(), why });
            }
            (false, _) => tcp(uri, authority)?,
        };
        Ok(parsed)
    }

    fn parameter(
        &mut self,
        uri: &str,
        parameter: &str,
        unix: bool,
        socket: &mut Option<PathBuf>,
    ) -> Result<(), UriError> {
        let wrong = |why: &str| UriError::Parameter {
            uri: uri.to_owned(),
            parameter: parameter.to_owned(),
            why: why.to_owned(),
        };
        let (name, value) = parameter.split_once('=').ok_or_else(|| wrong("it has no value"))?;
        let value = decode(value).ok_or_else(|| wrong("its percent signs do not give text"))?;
        if value.is_empty() || value.contains('\0') {
            return Err(wrong("its value is empty or holds a zero byte"));
        }
        match name {
            "socket" if unix => *socket = Some(value.into()),
            "socket" => return Err(wrong("only nbd+unix and nbds+unix have a socket")),
            "tls-certificates" | "tls-hostname" if !self.tls => {
                return Err(wrong("there is no TLS; write nbds:// or nbds+unix://"));
            }
            "tls-certificates" => self.tls_certificates = Some(value.into()),
            "tls-hostname" => self.tls_hostname = Some(value),
            "connections" => match value.parse() {
                Ok(number) if (1..=CONNECTIONS_MAX).contains(&number) => self.connections = Some(number),
                _ => return Err(wrong(&format!("it is not a number from 1 to {CONNECTIONS_MAX}"))),
            },
            "replies" => match value.as_str() {
                "structured" => self.structured = true,
                "simple" => self.structured = false,
                _ => return Err(wrong("it is neither simple nor structured")),
            },
            _ => {
                return Err(wrong(
                    "known are socket, tls-certificates, tls-hostname, connections and replies",
                ));
            }
        }
        Ok(())
    }
}

fn host(uri: &str, host: &str, why: &'static str) -> UriError {
    UriError::Host { uri: uri.to_owned(), host: host.to_owned(), why }
}

fn tcp(uri: &str, authority: &str) -> Result<Endpoint, UriError> {
    if authority.contains('@') {
        return Err(host(uri, authority, "user names are not supported"));
    }
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (name, after) =
                rest.split_once(']').ok_or_else(|| host(uri, authority, "its bracket is not closed"))?;
            if name.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(host(uri, name, "brackets hold an IPv6 address"));
            }
            match after.strip_prefix(':') {
                Some(port) => (name, Some(port)),
                None if after.is_empty() => (name, None),
                None => return Err(host(uri, authority, "something follows the bracket")),
            }
        }
        None => match authority.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (authority, None),
        },
    };
    if name.is_empty() {
        return Err(host(uri, name, "it is missing"));
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace() || "%[]".contains(c)) {
        return Err(host(uri, name, "it holds a character that no host name has"));
    }
    let port = match port {
        None => wire::PORT,
        Some(port) => match port.parse() {
            Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => number,
            _ => return Err(UriError::Port { uri: uri.to_owned(), port: port.to_owned() }),
        },
    };
    Ok(Endpoint::Tcp(name.to_owned(), port))
}

/// Resolves `%XX`; `None` if that gives no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn encode(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@,".contains(&byte) {
            write!(f, "{}", char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl fmt::Display for LunUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Nbd(uri) => uri.fmt(f),
            Self::Iscsi(uri) => uri.fmt(f),
        }
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "nbds" } else { "nbd" })?;
        match &self.endpoint {
            Endpoint::Unix(_) => f.write_str("+unix://")?,
            Endpoint::Tcp(host, port) => {
                if host.contains(':') {
                    write!(f, "://[{host}]")?;
                } else {
                    write!(f, "://{host}")?;
                }
                if *port != wire::PORT {
                    write!(f, ":{port}")?;
                }
            }
        }
        f.write_str("/")?;
        encode(&self.export, f)?;
        let mut mark = '?';
        let mut parameter = |f: &mut fmt::Formatter<'_>, name: &str, value: &str| {
            write!(f, "{mark}{name}=")?;
            mark = '&';
            encode(value, f)
        };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        if let Endpoint::Unix(path) = &self.endpoint {
            parameter(f, "socket", &text(path))?;
        }
        if let Some(dir) = &self.tls_certificates {
            parameter(f, "tls-certificates", &text(dir))?;
        }
        if let Some(name) = &self.tls_hostname {
            parameter(f, "tls-hostname", name)?;
        }
        if let Some(number) = self.connections {
            parameter(f, "connections", &number.to_string())?;
        }
        if self.structured {
            parameter(f, "replies", "structured")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nbd(text: &str) -> NbdUri {
        match text.parse() {
            Ok(LunUri::Nbd(uri)) => uri,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_form_is_read_and_written_back() {
        for text in [
            "nbd://10.78.0.9/vms",
            "nbd://storage.example:10810/vms",
            "nbd://[fd00::1]:10810/",
            "nbds://storage/vms?tls-certificates=/etc/pki&connections=8",
            "nbd://storage/vms?replies=structured",
            "nbd+unix:///vms?socket=/run/nbd.sock",
            "nbds+unix:///a%20b%25?socket=/run/x%3Fy&tls-hostname=storage",
            "iscsi://storage/iqn.2026-01.lab:vms/1",
            "/dev/mapper/vms",
            "file:disk.img",
            "file:/srv/disk.img",
        ] {
            let uri: LunUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), text);
        }
        assert_eq!(nbd("nbd://h").endpoint, Endpoint::Tcp("h".into(), 10809));
        assert_eq!(nbd("nbd+unix:///?socket=/s").export, "");
        assert_eq!(nbd("nbds+unix:///a%20b?socket=/s").export, "a b");
        assert_eq!("file:///srv/x".parse(), Ok(LunUri::File("/srv/x".into())));
    }

    #[test]
    fn errors_name_the_wrong_part() {
        for (text, part) in [
            ("fcp://x/y/0", "names no LUN"),
            ("iscsi://x/y", "a target and a LUN are needed"),
            ("/etc/passwd", "names no LUN"),
            ("nbd:///vms", "the host"),
            ("nbd://u@h/vms", "user names"),
            ("nbd://[::1/vms", "bracket"),
            ("nbd://h:0/vms", "the port \"0\""),
            ("nbd://h:+5/vms", "the port"),
            ("nbd://h/%zz", "export name"),
            ("nbd+unix:///vms", "socket=PATH"),
            ("nbd+unix://h/vms?socket=/s", "the host \"h\""),
            ("nbd://h/vms?socket=/s", "socket=/s"),
            ("nbd://h/vms?tls-certificates=/s", "no TLS"),
            ("nbd://h/vms?connections=99", "1 to 16"),
            ("nbd://h/vms?speed=high", "speed=high"),
            ("file:", "no path"),
        ] {
            let error = text.parse::<LunUri>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back(text in "(nbds?(\\+unix)?://[a-z0-9:\\[\\]]{0,8}/[ -~]{0,12}|[ -~]{0,20})") {
            if let Ok(uri) = text.parse::<LunUri>() {
                prop_assert_eq!(uri.to_string().parse::<LunUri>(), Ok(uri));
            }
        }
    }
}
