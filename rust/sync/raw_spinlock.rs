// SPDX-License-Identifier: GPL-2.0

//! A lock that spins, on PREEMPT_RT too.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    },
    pin::Pin, //
};
use kernel::{
    bindings,
    interrupt::LocalInterruptDisabled,
    prelude::*,
    str::CStr,
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

/// The lock functions, without a call between where C has none.
mod raw {
    #[cfg(all(CONFIG_SMP, CONFIG_UNINLINE_SPIN_UNLOCK))]
    pub(super) use kernel::bindings::{
        _raw_spin_lock as lock,
        _raw_spin_lock_irqsave as lock_irqsave,
        _raw_spin_unlock as unlock,
        _raw_spin_unlock_irqrestore as unlock_irqrestore, //
    };
    #[cfg(not(all(CONFIG_SMP, CONFIG_UNINLINE_SPIN_UNLOCK)))]
    pub(super) use vrs_bindings::{
        vrs_raw_spin_lock as lock,
        vrs_raw_spin_lock_irqsave as lock_irqsave,
        vrs_raw_spin_unlock as unlock,
        vrs_raw_spin_unlock_irqrestore as unlock_irqrestore, //
    };
}

/// A value behind C's `raw_spinlock_t`.
///
/// It is taken with interrupts disabled, so that an interrupt handler may take it, too.
///
/// # Context
///
/// Any, hard interrupts included. Who holds it must not sleep, nor take a lock that sleeps on
/// PREEMPT_RT, such as `kernel::sync::SpinLock`.
// The value's address has no meaning, the lock's is an argument of each call: it comes first.
#[pin_data]
#[repr(C)]
pub struct RawSpinLock<T> {
    #[pin]
    lock: Opaque<bindings::raw_spinlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: Moving the lock between threads moves the data, no more.
unsafe impl<T: Send> Send for RawSpinLock<T> {}
// SAFETY: One thread at a time gets at the data.
unsafe impl<T: Send> Sync for RawSpinLock<T> {}

impl<T> RawSpinLock<T> {
    /// Creates an initialiser; use [`new_raw_spinlock!`](crate::new_raw_spinlock) for the lock class.
    pub fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes, the name and the key live for ever.
            lock <- Opaque::ffi_init(|slot| unsafe {
                vrs_bindings::vrs_raw_spin_lock_init(slot, name.as_char_ptr(), key.as_ptr())
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Spins until the lock is free and takes it.
    #[inline(always)]
    pub fn lock<'a>(
        &'a self,
        _irqs: &'a LocalInterruptDisabled,
    ) -> RawSpinGuard<'a, T, IrqsDisabled> {
        // SAFETY: `self.lock` was initialised by `new`.
        unsafe { raw::lock(self.lock.get()) };
        RawSpinGuard::new(self, IrqsDisabled)
    }

    /// Takes the lock as one of the subclass `SUBCLASS`, which tells lockdep that locks are held
    /// that would make it believe in a deadlock otherwise.
    #[inline(always)]
    pub fn lock_nested<'a, const SUBCLASS: u32>(
        &'a self,
        _irqs: &'a LocalInterruptDisabled,
    ) -> RawSpinGuard<'a, T, IrqsDisabled> {
        #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
        // SAFETY: `self.lock` was initialised by `new`.
        unsafe {
            vrs_bindings::vrs_raw_spin_lock_nested(self.lock.get(), SUBCLASS as c_int)
        };
        #[cfg(not(CONFIG_DEBUG_LOCK_ALLOC))]
        // SAFETY: `self.lock` was initialised by `new`.
        unsafe {
            raw::lock(self.lock.get())
        };
        RawSpinGuard::new(self, IrqsDisabled)
    }

    /// Disables interrupts, then takes the lock.
    #[inline(always)]
    pub fn lock_irqsave(&self) -> RawSpinGuard<'_, T, IrqsSaved> {
        // SAFETY: `self.lock` was initialised by `new`.
        let flags = unsafe { raw::lock_irqsave(self.lock.get()) };
        RawSpinGuard::new(self, IrqsSaved(flags))
    }

    /// Disables interrupts, then takes the lock, and tells lockdep that this is to exclude those who
    /// take it as the subclass `SUBCLASS` as well.
    #[inline(always)]
    pub fn lock_irqsave_also_nested<const SUBCLASS: u32>(
        &self,
    ) -> RawSpinGuard<'_, T, IrqsSavedNested> {
        // SAFETY: `self.lock` was initialised by `new`.
        let flags = unsafe { raw::lock_irqsave(self.lock.get()) };
        #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
        // SAFETY: As above, and the lock is held.
        unsafe {
            vrs_bindings::vrs_raw_spin_also_acquired(self.lock.get(), SUBCLASS as c_int)
        };
        RawSpinGuard::new(self, IrqsSavedNested(flags))
    }
}

/// How a lock is released; what [`RawSpinLock`]'s functions return implements it.
pub trait Release {
    /// # Safety
    ///
    /// This is what the lock was taken with, and it is released once.
    #[doc(hidden)]
    unsafe fn release(&self, lock: *mut bindings::raw_spinlock_t);
}

/// Interrupts were disabled already.
pub struct IrqsDisabled;

/// Interrupts were disabled with the lock.
pub struct IrqsSaved(c_ulong);

/// As [`IrqsSaved`], with the subclass.
pub struct IrqsSavedNested(c_ulong);

impl Release for IrqsDisabled {
    #[inline(always)]
    unsafe fn release(&self, lock: *mut bindings::raw_spinlock_t) {
        // SAFETY: By the requirement of this function.
        unsafe { raw::unlock(lock) };
    }
}

impl Release for IrqsSaved {
    #[inline(always)]
    unsafe fn release(&self, lock: *mut bindings::raw_spinlock_t) {
        // SAFETY: By the requirement of this function.
        unsafe { raw::unlock_irqrestore(lock, self.0) };
    }
}

impl Release for IrqsSavedNested {
    #[inline(always)]
    unsafe fn release(&self, lock: *mut bindings::raw_spinlock_t) {
        #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
        // SAFETY: By the requirement of this function.
        unsafe {
            vrs_bindings::vrs_raw_spin_also_released(lock)
        };
        // SAFETY: By the requirement of this function.
        unsafe { raw::unlock_irqrestore(lock, self.0) };
    }
}

/// Exclusive access to the value of a [`RawSpinLock`].
///
/// # Invariants
///
/// The guard owns the lock.
#[must_use = "the lock is released when the guard is dropped"]
pub struct RawSpinGuard<'a, T, R: Release> {
    lock: &'a RawSpinLock<T>,
    release: R,
    _not_send: NotThreadSafe,
}

impl<'a, T, R: Release> RawSpinGuard<'a, T, R> {
    #[inline(always)]
    fn new(lock: &'a RawSpinLock<T>, release: R) -> Self {
        // INVARIANT: The callers have just taken it.
        Self {
            lock,
            release,
            _not_send: NotThreadSafe,
        }
    }
}

impl<T, R: Release> Deref for RawSpinGuard<'_, T, R> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariant nobody else has access while the guard lives.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T, R: Release> DerefMut for RawSpinGuard<'_, T, R> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant nobody else has access while the guard lives.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T, R: Release> Drop for RawSpinGuard<'_, T, R> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the lock was taken with what is released.
        unsafe { self.release.release(self.lock.lock.get()) };
    }
}
