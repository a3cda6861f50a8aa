// SPDX-License-Identifier: GPL-2.0

//! What KVM lets a module take over.
//!
//! - [`posted_intr`] (x86): how interrupts that devices post get to vCPUs that wait.
//! - [`sregs`] (x86): special registers of vCPUs whose state is protected.
//! - [`stage2`] (arm64): how device memory gets into a guest's stage 2.
//!
//! # Unsafe code
//!
//! Wraps the tables of functions that `patches/` adds to KVM.

#[cfg(CONFIG_X86)]
pub mod posted_intr;
#[cfg(CONFIG_X86)]
pub mod sregs;
#[cfg(CONFIG_ARM64)]
pub mod stage2;
