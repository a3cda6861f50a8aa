// SPDX-License-Identifier: GPL-2.0

//! Reads what a running kernel tells about its VFIO type1 containers.
//!
//! [`report`] parses the debugfs file of `vfio_type1_rs`, [`host`] gathers the rest from procfs
//! and sysfs.

#![forbid(unsafe_code)]

pub mod host;
pub mod report;
