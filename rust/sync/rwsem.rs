// SPDX-License-Identifier: GPL-2.0

//! A sleeping reader-writer lock.
//!
//! C header: [`include/linux/rwsem.h`](srctree/include/linux/rwsem.h)

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
    prelude::*,
    str::CStr,
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

/// A value behind C's `struct rw_semaphore`: many readers or one writer, both may sleep.
///
/// A writer that waits keeps new readers out, so a task must not take the read side twice.
///
/// # Context
///
/// Process context only; every acquisition may sleep.
#[pin_data]
pub struct RwSem<T> {
    #[pin]
    sem: Opaque<bindings::rw_semaphore>,
    data: UnsafeCell<T>,
}

// SAFETY: Moving the lock between threads moves the data, no more.
unsafe impl<T: Send> Send for RwSem<T> {}
// SAFETY: Readers on several threads share `&T`, and a writer on any thread gets `&mut T`.
unsafe impl<T: Send + Sync> Sync for RwSem<T> {}

impl<T> RwSem<T> {
    /// Creates an initialiser; use [`new_rwsem!`](crate::new_rwsem) for the lock class.
    pub fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes, the name and the key live for ever.
            sem <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_rwsem(slot, name.as_char_ptr(), key.as_ptr())
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Waits until no writer holds the lock and takes the read side.
    pub fn read(&self) -> RwSemReadGuard<'_, T> {
        // SAFETY: `self.sem` was initialised by `new`.
        unsafe { bindings::down_read(self.sem.get()) };
        // INVARIANT: The read side was just taken.
        RwSemReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Waits until nobody holds the lock and takes the write side.
    pub fn write(&self) -> RwSemWriteGuard<'_, T> {
        // SAFETY: `self.sem` was initialised by `new`.
        unsafe { bindings::down_write(self.sem.get()) };
        // INVARIANT: The write side was just taken.
        RwSemWriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// Shared access to the value of a [`RwSem`].
///
/// # Invariants
///
/// The guard owns one acquisition of the lock's read side.
#[must_use = "the lock is released when the guard is dropped"]
pub struct RwSemReadGuard<'a, T> {
    lock: &'a RwSem<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for RwSemReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant no writer exists while the guard lives.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> Drop for RwSemReadGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this task holds the read side.
        unsafe { bindings::up_read(self.lock.sem.get()) };
    }
}

/// Exclusive access to the value of a [`RwSem`].
///
/// # Invariants
///
/// The guard owns the lock's write side.
#[must_use = "the lock is released when the guard is dropped"]
pub struct RwSemWriteGuard<'a, T> {
    lock: &'a RwSem<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for RwSemWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant nobody else has access while the guard lives.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for RwSemWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant nobody else has access while the guard lives.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for RwSemWriteGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this task holds the write side.
        unsafe { bindings::up_write(self.lock.sem.get()) };
    }
}
