// SPDX-License-Identifier: GPL-2.0

//! Raw bindings to what KVM/x86 offers a module that handles posted interrupts.
//!
//! C headers: `arch/x86/include/asm/kvm_pi_provider.h` (of `patches/`),
//! `rust/helpers/kvm_x86.h`, `kvm_x86_rs/trace.h`.
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

// bindgen gets a layout wrong without a word, see `rust/bindings/layout.rs`.
const _: () = {
    assert!(VRS_SIZE_KVM_PI_VCPU as usize == size_of::<kvm_pi_vcpu>());
    assert!(
        VRS_OFFSET_KVM_PI_VCPU_LIST as usize == core::mem::offset_of!(kvm_pi_vcpu, wakeup_list)
    );
    assert!(VRS_SIZE_KVM_PI_PROVIDER as usize == size_of::<kvm_pi_provider>());
    assert!(VRS_SIZE_KVM_PI_HOST as usize == size_of::<kvm_pi_host>());
};
