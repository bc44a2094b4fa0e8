//! The wire versions that this release speaks, negotiated when a connection is made.

/// The wire versions of this release, the newest first. A release also speaks the version before its own, so that a
/// cluster is upgraded node by node. Version 1 is the first.
pub(super) const SPOKEN: &[u16] = &[1];

/// The names of the versions, as TLS negotiates them (ALPN).
pub(super) fn protocols(versions: &[u16]) -> Vec<Vec<u8>> {
    versions.iter().map(|version| format!("csv/{version}").into_bytes()).collect()
}

/// The version of a negotiated name.
pub(super) fn parse(protocol: &[u8]) -> Option<u16> {
    std::str::from_utf8(protocol).ok()?.strip_prefix("csv/")?.parse().ok()
}

/// The names of the versions, for an error's text.
pub(super) fn text(versions: &[u16]) -> String {
    versions.iter().map(|version| format!("csv/{version}")).collect::<Vec<_>>().join(", ")
}
