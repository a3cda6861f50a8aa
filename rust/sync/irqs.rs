// SPDX-License-Identifier: GPL-2.0

//! Disabled interrupts.

use kernel::interrupt::LocalInterruptDisabled;

/// [`LocalInterruptDisabled::assume_disabled`], which costs a call of C even if nothing is checked.
///
/// # Safety
///
/// Interrupts are disabled during `'a`.
#[inline(always)]
pub unsafe fn assume_irqs_disabled<'a>() -> &'a LocalInterruptDisabled {
    #[cfg(CONFIG_PROVE_LOCKING)]
    // SAFETY: By the requirement of this function.
    unsafe {
        LocalInterruptDisabled::assume_disabled()
    }
    #[cfg(not(CONFIG_PROVE_LOCKING))]
    {
        const { assert!(size_of::<LocalInterruptDisabled>() == 0) };
        // SAFETY: The pointer is aligned, and a type without size has no invalid values. What this
        // one stands for is so by the requirement of this function.
        unsafe { core::ptr::NonNull::dangling().as_ref() }
    }
}
