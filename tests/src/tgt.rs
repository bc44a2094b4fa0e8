//! tgt, Debian's iSCSI target in user space, as one process that serves an image as unit 1 to everybody.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use crate::programs;

/// The target's name.
pub const NAME: &str = "iqn.2026-01.lab:vms";
/// What is printed when it serves.
pub const READY: &str = "ready";

/// Configures what it then becomes: arguments are the folder of the control socket, the image, and the portal.
const SCRIPT: &str = r#"
export TGT_IPC_SOCKET=$1/tgtd
rm -f "$1"/tgtd.0*
admin() { tgtadm -C 0 --lld iscsi --mode "$@"; }
(
    until admin target --op show >/dev/null 2>&1; do kill -0 $$ || exit; sleep 0.05; done
    admin target --op new --tid 1 -T "$4" &&
    admin logicalunit --op new --tid 1 --lun 1 -b "$2" &&
    admin logicalunit --op update --tid 1 --lun 1 --params thin_provisioning=1 &&
    admin target --op bind --tid 1 -I ALL && echo ready
) &
exec tgtd -f -C 0 --iscsi portal="$3"
"#;

/// The arguments of `sh` that make it a tgtd.
///
/// # Errors
/// If tgt is not installed.
pub fn arguments(folder: &Path, image: &Path, portal: SocketAddr) -> Result<Vec<OsString>> {
    programs::installed("tgtd")?;
    let portal = portal.to_string();
    let words: [OsString; 7] =
        ["-c".into(), SCRIPT.into(), "tgt".into(), folder.into(), image.into(), portal.into(), NAME.into()];
    Ok(words.into())
}

/// How the unit is named.
#[must_use]
pub fn url(portal: SocketAddr) -> String {
    format!("iscsi://{portal}/{NAME}/1")
}
