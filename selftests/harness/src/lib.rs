// SPDX-License-Identifier: GPL-2.0

//! What the programs that test VFIO type1 have in common.
//!
//! A test is a function from the machine under test, [`env::Env`], to a [`check::Verdict`], with a
//! line in a table made by [`tests!`]. It reaches the kernel through [`vfio`], maps [`memory`] and
//! looks at the process it runs in through [`proc`]. [`cli`] picks tests from the command line and
//! [`runner`] runs them.

pub mod check;
pub mod cli;
pub mod edu;
pub mod emulated;
pub mod env;
pub mod info;
pub mod iommufd;
pub mod memory;
pub mod module;
pub mod proc;
pub mod runner;
pub mod soft;
pub mod trace;
pub mod vfio;
