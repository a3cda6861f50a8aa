// SPDX-License-Identifier: GPL-2.0

//! Raw bindings to what KVM/x86 offers a module that handles posted interrupts, or the special
//! registers of vCPUs whose state is protected.
//!
//! C headers: `arch/x86/include/asm/kvm_{pi,sregs}_provider.h` (of `patches/`),
//! `rust/helpers/kvm_x86.h`, `kvm_x86_rs/{params,trace,trace_sregs}.h`.
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
    assert!(VRS_SIZE_KVM_SREGS as usize == size_of::<kvm_sregs>());
    assert!(VRS_OFFSET_KVM_SREGS_CR0 as usize == core::mem::offset_of!(kvm_sregs, cr0));
    assert!(VRS_OFFSET_KVM_SREGS_APIC_BASE as usize == core::mem::offset_of!(kvm_sregs, apic_base));
    // One may be passed for the other, up to here.
    assert!(VRS_OFFSET_KVM_SREGS2_APIC_BASE == VRS_OFFSET_KVM_SREGS_APIC_BASE);
    assert!(VRS_SIZE_KVM_SREGS_MODEL as usize == size_of::<kvm_sregs_model>());
    assert!(VRS_SIZE_KVM_SREGS_LIMITS as usize == size_of::<kvm_sregs_limits>());
    assert!(VRS_SIZE_KVM_SREGS_HOST as usize == size_of::<kvm_sregs_host>());
    assert!(VRS_SIZE_KVM_SREGS_PROVIDER as usize == size_of::<kvm_sregs_provider>());
};
