// SPDX-License-Identifier: GPL-2.0

//! Synchronisation primitives the kernel crate does not have yet.
//!
//! A stop-gap: each file goes away when `kernel::sync` has its type.
//!
//! # Unsafe code
//!
//! Wraps the C lock functions.

mod rwsem;

pub use rwsem::{
    RwSem,
    RwSemReadGuard,
    RwSemWriteGuard, //
};

#[doc(hidden)]
pub use kernel::static_lock_class;

/// Creates a [`RwSem`] initialiser with a lock class of its own and the given name.
#[macro_export]
macro_rules! new_rwsem {
    ($inner:expr, $name:literal) => {
        $crate::RwSem::new(
            $inner,
            ::kernel::c_str!($name),
            $crate::static_lock_class!(),
        )
    };
}
