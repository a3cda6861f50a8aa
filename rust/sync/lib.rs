// SPDX-License-Identifier: GPL-2.0

//! Synchronisation primitives the kernel crate does not have yet.
//!
//! A stop-gap: each file goes away when `kernel::sync` has its type.
//!
//! # Unsafe code
//!
//! Wraps the C lock functions, per-CPU memory and CPU hotplug.

mod count;
mod hotplug;
mod irqs;
mod percpu;
mod raw_spinlock;
mod rwsem;

pub use count::Count;
pub use hotplug::{
    CpuDead,
    OnCpuDead, //
};
pub use irqs::assume_irqs_disabled;
pub use percpu::{
    c_per_cpu,
    c_this_cpu,
    PerCpu,
    PossibleCpu, //
};
pub use raw_spinlock::{
    RawSpinGuard,
    RawSpinLock, //
};
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

/// Creates a [`RawSpinLock`] initialiser with a lock class of its own and the given name.
#[macro_export]
macro_rules! new_raw_spinlock {
    ($inner:expr, $name:literal) => {
        $crate::RawSpinLock::new(
            $inner,
            ::kernel::c_str!($name),
            $crate::static_lock_class!(),
        )
    };
}
