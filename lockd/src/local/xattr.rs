//! The name of the resource behind a path, as its mount tells it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The virtual extended attribute by which a mount tells the resource of a file.
const ATTRIBUTE: &std::ffi::CStr = c"user.csvfs.resource";
/// The longest name of a resource.
const NAME_MAX: usize = 256;

/// The name of the resource behind `path`, as the mount of its volume tells it.
///
/// # Errors
/// If there is no such file, or it is not on a csvfs volume.
pub fn resource_name(path: &Path) -> io::Result<String> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = [0_u8; NAME_MAX];
    // SAFETY: both names end with a zero byte, and the kernel writes at most as many bytes as the buffer has.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), ATTRIBUTE.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    let name = std::str::from_utf8(&value[..length.min(NAME_MAX)]);
    name.map(str::to_owned).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
