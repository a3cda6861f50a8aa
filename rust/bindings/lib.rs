// SPDX-License-Identifier: GPL-2.0

//! Raw bindings to the C that the kernel crate does not bind: VFIO's private driver interface and
//! this project's own helpers.
//!
//! Types that the kernel crate has are its own, so that values pass between both.
//!
//! C headers: `drivers/vfio/vfio.h`, `rust/helpers/helpers.h`, `vfio_type1_rs/params.h`.
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

mod layout;

/// Defines a function that reads a module parameter, which root may change at any time.
///
/// The parameter is a variable of C, in the module that the caller is part of.
#[macro_export]
macro_rules! param {
    ($(#[$doc:meta])* $visibility:vis $name:ident: $type:ty = $variable:path) => {
        $(#[$doc])*
        $visibility fn $name() -> $type {
            // SAFETY: The variable lives as long as the module. C stores it whole, so that a
            // volatile load sees the old or the new value.
            unsafe { (&raw const $variable).read_volatile() }
        }
    };
}
