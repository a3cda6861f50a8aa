// SPDX-License-Identifier: GPL-2.0

//! Posted interrupts: the descriptor, and how a vCPU that leaves its CPU still gets them.
//!
//! Devices and other CPUs post interrupts to a vCPU by writing into its descriptor, and notify the
//! CPU that the descriptor names, if nobody was notified before and notification is not suppressed.
//! The host keeps the descriptor true: [`load`] and [`put`] as the vCPU comes and goes, a list per
//! CPU of those that wait there, and a handler that wakes them.
//!
//! What must never happen is that an interrupt is posted and nobody is left who would notice. There
//! is no lock that devices take, so all depends on the order of accesses. `tests/interleave.rs` tries
//! all orders.

#![cfg_attr(not(MODULE), no_std)]
#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]

mod descriptor;
mod post;
mod vcpu;

pub use descriptor::{
    Control,
    Descriptor,
    Ndst,
    Word,
    PIR_WORDS, //
};
pub use post::{
    post_as_cpu,
    post_as_device,
    take,
    Notification, //
};
pub use vcpu::{
    initial,
    load,
    load_moved,
    load_waited,
    load_waited_elsewhere,
    pending,
    pre_restore,
    put,
    to_be_woken,
    wait,
    Wakeup,
    RUNNING,
    WAKEUP, //
};

#[cfg(any(test, vrs_kunit))]
#[cfg_attr(vrs_kunit, kernel::macros::kunit_tests(posted_intr))]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// A word that nobody shares.
    struct Mine(Cell<u64>);

    impl Word for Mine {
        fn bits(&self) -> u64 {
            self.0.get()
        }

        fn set<const BIT: u32>(&self) {
            self.test_and_set(BIT);
        }

        fn test_and_set(&self, bit: u32) -> bool {
            self.0.replace(self.0.get() | 1 << bit) & 1 << bit != 0
        }

        fn test_and_clear<const BIT: u32>(&self) -> bool {
            self.0.replace(self.0.get() & !(1 << BIT)) & 1 << BIT != 0
        }

        fn set_byte<const SHIFT: u32>(&self, byte: u8) {
            let others = self.0.get() & !(0xff << SHIFT);
            self.0.set(others | u64::from(byte) << SHIFT);
        }

        fn swap(&self, bits: u64) -> u64 {
            self.0.replace(bits)
        }

        fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
            if self.bits() != old {
                return Err(self.bits());
            }
            self.0.set(new);
            Ok(())
        }
    }

    fn descriptor() -> Descriptor<Mine> {
        let word = |bits| Mine(Cell::new(bits));
        Descriptor::new(
            [word(0), word(0), word(0), word(0)],
            word(initial().bits()),
            [word(0), word(0), word(0)],
        )
    }

    fn load(descriptor: &Descriptor<Mine>, moved: bool, here: Ndst, list: &Asked) {
        super::load(
            descriptor,
            moved,
            || {
                if moved {
                    load_waited_elsewhere(descriptor, || here, list);
                } else {
                    load_waited(descriptor, list);
                }
            },
            || load_moved(descriptor, here),
        );
    }

    /// Counts what was asked of the list.
    #[derive(Default)]
    struct Asked {
        enlisted: Cell<u32>,
        delisted: Cell<u32>,
        notified: Cell<u32>,
    }

    impl Asked {
        fn counts(&self) -> (u32, u32, u32) {
            (
                self.enlisted.get(),
                self.delisted.get(),
                self.notified.get(),
            )
        }
    }

    impl Wakeup for Asked {
        fn enlist(&self) {
            self.enlisted.set(self.enlisted.get().saturating_add(1));
        }

        fn delist(&self) {
            self.delisted.set(self.delisted.get().saturating_add(1));
        }

        fn notify_self(&self) {
            self.notified.set(self.notified.get().saturating_add(1));
        }
    }

    fn cpu(id: u32) -> Ndst {
        Ndst::x2apic(id)
    }

    #[test]
    fn layout_is_that_of_hardware() {
        assert_eq!(size_of::<Descriptor<u64>>(), 64);
        assert_eq!(align_of::<Descriptor<u64>>(), 64);

        let control = Control::new(0)
            .with_on()
            .with_nv(0xf2)
            .with_ndst(Ndst::x2apic(0x1234_5678));
        assert_eq!(control.bits(), 0x1234_5678_00f2_0001);
        assert_eq!(control.nv(), 0xf2);
        assert_eq!(control.ndst().bits(), 0x1234_5678);
        assert!(control.on() && !control.sn());
        assert_eq!(initial().bits(), 0x00f2_0002);
        assert_eq!(initial().without_sn().bits(), 0x00f2_0000);
        // Every other bit stays.
        assert_eq!(
            Control::new(!0)
                .with_nv(0)
                .with_ndst(Ndst::x2apic(0))
                .bits(),
            0xff00_ffff
        );
        assert_eq!(Ndst::xapic(0x1ab).bits(), 0xab00);
    }

    #[test]
    fn vectors_have_a_bit_each() {
        for vector in 0..=255u8 {
            let descriptor = descriptor();
            assert!(!descriptor.request(vector));
            assert!(descriptor.request(vector));
            let taken = descriptor.take_requests();
            for (index, word) in taken.iter().enumerate() {
                let here = index == usize::from(vector / 64);
                assert_eq!(*word, if here { 1 << (vector % 64) } else { 0 });
            }
            assert!(!descriptor.any_requested());
        }
    }

    #[test]
    fn load_suffices_for_a_vcpu_that_stays() {
        let descriptor = descriptor();
        let list = Asked::default();
        load(&descriptor, true, cpu(3), &list);
        assert_eq!(descriptor.control().bits(), 0x0000_0003_00f2_0000);
        // Nobody asks which CPU it is if it is the same.
        load(&descriptor, false, cpu(9), &list);
        assert_eq!(descriptor.control().bits(), 0x0000_0003_00f2_0000);
        assert!(list.counts() == (0, 0, 0));
    }

    #[test]
    fn suppressed_requests_are_found_by_load() {
        for moved in [false, true] {
            let descriptor = descriptor();
            let list = Asked::default();
            load(&descriptor, true, cpu(1), &list);
            put(&descriptor);
            assert!(!pending(&descriptor));
            assert!(post_as_device(&descriptor, 0x41, false).is_none());
            assert!(!descriptor.control().on());
            assert!(pending(&descriptor));
            load(&descriptor, moved, cpu(2), &list);
            assert!(descriptor.control().on() && !descriptor.control().sn());
            assert!(take(&descriptor) == [0, 2, 0, 0]);
            assert!(!pending(&descriptor));
            assert!(list.counts() == (0, 0, 0));
        }
    }

    #[test]
    fn urgent_requests_are_not_suppressed() {
        let descriptor = descriptor();
        assert!(post_as_device(&descriptor, 7, true).is_some());
        assert!(descriptor.control().on());
    }

    #[test]
    fn a_waiting_vcpu_is_notified_once() {
        let descriptor = descriptor();
        let list = Asked::default();
        load(&descriptor, true, cpu(1), &list);
        wait(&descriptor, &list);
        assert!(list.counts() == (1, 0, 0));
        assert!(!to_be_woken(&descriptor));
        let sent = post_as_device(&descriptor, 0x80, false);
        assert!(
            sent == Some(Notification {
                vector: WAKEUP,
                destination: Ndst::x2apic(1)
            })
        );
        assert!(to_be_woken(&descriptor));
        assert!(post_as_device(&descriptor, 0x81, false).is_none());
        load(&descriptor, true, cpu(0), &list);
        assert!(list.counts() == (1, 1, 0));
        assert!(descriptor.control().nv() == RUNNING);
        assert!(take(&descriptor) == [0, 0, 3, 0]);
    }

    #[test]
    fn what_came_before_the_vcpu_waits_wakes_it() {
        let descriptor = descriptor();
        let list = Asked::default();
        load(&descriptor, true, cpu(1), &list);
        assert!(post_as_cpu(&descriptor, 0x30));
        assert!(!post_as_cpu(&descriptor, 0x31));
        wait(&descriptor, &list);
        assert!(list.counts() == (1, 0, 1));
    }

    #[test]
    fn nothing_is_left_to_restore_over() {
        let descriptor = descriptor();
        descriptor.request(1);
        descriptor.request(255);
        descriptor.set_on();
        pre_restore(&descriptor);
        assert!(!pending(&descriptor));
        assert!(!descriptor.any_requested());
        assert!(descriptor.control() == initial());
    }
}
