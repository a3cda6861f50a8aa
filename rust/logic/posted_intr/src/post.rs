// SPDX-License-Identifier: GPL-2.0

//! What others do to a descriptor: devices, KVM that posts by software, the guest's entry.
//!
//! The drivers need none of this. Models and tests do, and play those roles with it.

use crate::descriptor::{
    Descriptor,
    Ndst,
    Word,
    PIR_WORDS, //
};

/// An interrupt to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a notification that is not sent is lost"]
pub struct Notification {
    /// Its vector.
    pub vector: u8,
    /// Its destination.
    pub destination: Ndst,
}

/// Posts as a device does, through the IOMMU.
///
/// VT-d, "Interrupt-Posting Hardware Operation": it requests the vector, and if no notification is
/// outstanding, and they are not suppressed or this one is `urgent`, makes one outstanding and sends
/// it. Hardware does that in one transaction of the cache line; here it is two, in an order that a
/// [`load`](crate::load) in between cannot tell from that.
pub fn post_as_device<W: Word>(
    descriptor: &Descriptor<W>,
    vector: u8,
    urgent: bool,
) -> Option<Notification> {
    descriptor.request(vector);
    let mut control = descriptor.control();
    loop {
        if control.on() || (control.sn() && !urgent) {
            return None;
        }
        match descriptor.replace(control, control.with_on()) {
            Ok(()) => {
                return Some(Notification {
                    vector: control.nv(),
                    destination: control.ndst(),
                })
            }
            Err(now) => control = now,
        }
    }
}

/// Posts as KVM does, by software; says whether the vCPU is to be kicked or woken.
pub fn post_as_cpu<W: Word>(descriptor: &Descriptor<W>, vector: u8) -> bool {
    !descriptor.request(vector) && !descriptor.test_and_set_on()
}

/// What KVM does before it enters the guest, and hardware does on notification of a guest that runs:
/// takes the requests, if a notification says that there are any.
pub fn take<W: Word>(descriptor: &Descriptor<W>) -> [u64; PIR_WORDS] {
    if !descriptor.control().on() {
        return [0; PIR_WORDS];
    }
    // In this order: a request made after it was looked for sets ON again.
    descriptor.clear_on();
    descriptor.take_requests()
}
