//! Bad input and bad days, with real processes: a clear error each time, and nothing lost.

mod block_device;
mod ending;
mod error_filter;
mod foreign;
mod full;
mod helper;
mod hostile;
mod iscsi;
mod label;
mod limits;
mod metadata;
mod metrics;
mod other_lun;
mod paths;
mod second;
mod server_errors;
mod server_gone;
mod superblock;
mod versions;
mod wrong_lun;
