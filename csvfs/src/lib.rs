//! The volume: on-disk format, coordinator, node, and front ends.
