//! The cluster as its administrator describes it: the cluster file, and the certificates that prove who a node is.
