// SPDX-License-Identifier: GPL-2.0

//! Raw bindings to what KVM/arm64 offers a module that maps device memory.
//!
//! C headers: `arch/arm64/include/asm/kvm_s2_device.h` (of `patches/`),
//! `rust/helpers/kvm_arm64.h`.
//!
//! # Unsafe code
//!
//! Declarations of C functions; nothing here is called here.

#![allow(
    clippy::all,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks
)]

use kernel::{
    bindings::*,
    ffi, //
};
use pin_init::MaybeZeroable;

include!("generated.rs");
