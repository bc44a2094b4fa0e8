//! Where a csv-target is asked to fence.

use std::fmt;
use std::str::FromStr;

/// The address of a csv-target's control port: `HOST:PORT`, with an IPv6 address in brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ControlAddress {
    /// A name or an IP address, without brackets. It must stand in the target's certificate.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What is no address of a control port.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no address of a control port: give HOST:PORT, as csv-target has it in --control")]
pub struct InvalidControl(pub String);

impl FromStr for ControlAddress {
    type Err = InvalidControl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidControl(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // Whatever can stand in a certificate.
        let host = match bare {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?.to_string(),
            None if host.contains(':') => return Err(invalid()),
            None => host.to_owned(),
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        let is_name = rustls_pki_types::ServerName::try_from(host.as_str()).is_ok();
        if is_name { Ok(Self { host, port }) } else { Err(invalid()) }
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_alike() {
        for text in ["10.78.0.9:10810", "san-1.example:1", "[fd00::9]:10810"] {
            assert_eq!(
                text.parse::<ControlAddress>().map(|address| address.to_string()),
                Ok(text.to_owned())
            );
        }
        for wrong in ["", "10.78.0.9", ":1", "host:0", "host:70000", "fd00::9:1", "unix:/run/t", "[host]:1"] {
            let said = wrong.parse::<ControlAddress>().expect_err(wrong).to_string();
            assert!(said.contains("HOST:PORT"), "{said}");
        }
    }
}
