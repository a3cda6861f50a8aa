// SPDX-License-Identifier: GPL-2.0

//! What the host does to a descriptor as its vCPU comes and goes.
//!
//! A vCPU is in one of three states:
//!
//! | state | NV | NDST | SN | who is told of an interrupt |
//! |---|---|---|---|---|
//! | loaded on a CPU | [`RUNNING`] | that CPU | 0 | the guest, or nobody: the host looks before it enters the guest |
//! | waiting for interrupts | [`WAKEUP`] | the CPU on whose list it is | 0 | that CPU, which wakes it |
//! | neither | [`RUNNING`] | any | 1 | nobody: it will be loaded anyway |
//!
//! There is a fourth in which it should never stay: not loaded, with NV [`RUNNING`] and SN 0. That
//! is how a vCPU leaves while nothing but the host can post to it, and the host wakes it by other
//! means. When the first device comes, such a vCPU must leave its CPU once more: the next
//! interrupt would set ON and be swallowed, and nobody would be told ever after.

use crate::descriptor::{
    Control,
    Descriptor,
    Ndst,
    Word, //
};

/// The notification vector of a vCPU that runs. Outside the guest the host ignores it.
pub const RUNNING: u8 = 0xf2;

/// The notification vector of a vCPU that waits. Its handler wakes vCPUs.
pub const WAKEUP: u8 = 0xf1;

/// The wakeup list of the CPU that a vCPU leaves, as seen by that vCPU.
pub trait Wakeup {
    /// Puts the vCPU on the list of the CPU it is on. Interrupts are disabled.
    fn enlist(&self);

    /// Takes the vCPU off the list it was put on, which may be another CPU's by now.
    fn delist(&self);

    /// Sends [`WAKEUP`] to this CPU, to be handled when it has interrupts enabled.
    fn notify_self(&self);
}

/// Why a vCPU leaves its CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaving {
    /// Other vCPUs can post to it without the host's help.
    pub from_ipis: bool,
    /// A device can.
    pub from_devices: bool,
    /// It did not choose to: it stays runnable.
    pub preempted: bool,
    /// It waits for something to happen.
    pub blocking: bool,
    /// An interrupt would be that something. Looked at only if it waits.
    pub irqs_allowed: bool,
}

/// What is done about a vCPU that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: all that posts to it also wakes it.
    Nothing,
    /// Interrupts wake it.
    Wake,
    /// Interrupts are kept for when it comes back.
    Suppress,
}

impl Leaving {
    /// What to do.
    pub fn plan(self) -> Plan {
        if !self.from_ipis && !self.from_devices {
            Plan::Nothing
        } else if self.blocking && !self.preempted && self.irqs_allowed {
            Plan::Wake
        } else {
            // A notification would interrupt a CPU for nothing, preempted or not.
            Plan::Suppress
        }
    }
}

/// Has the vCPU's interrupts go to the CPU it is loaded on.
///
/// `moved` tells whether it was on another CPU the last time. `anew` is called unless the vCPU is still
/// where it was and did not wait, and has to do [`load_anew`]: the caller decides what that costs
/// those for which it is not called.
#[inline(always)]
pub fn load<W: Word>(descriptor: &Descriptor<W>, moved: bool, anew: impl FnOnce()) {
    if moved || waited(descriptor) {
        anew();
    // If SN was clear, nothing was suppressed, and ON is what it should be.
    } else if descriptor.clear_sn() {
        find_suppressed(descriptor);
    }
}

// NV is written by `load_anew` and `wait` only, which no two CPUs do to one vCPU at a time: it is the
// record of what `put` did. Whether devices are there now says nothing about that.
fn waited<W: Word>(descriptor: &Descriptor<W>) -> bool {
    descriptor.control().nv() == WAKEUP
}

/// The long way of [`load`]. `here` is this CPU.
#[inline]
pub fn load_anew<W: Word>(
    descriptor: &Descriptor<W>,
    here: impl FnOnce() -> Ndst,
    list: &impl Wakeup,
) {
    if waited(descriptor) {
        // Until NV is changed below the old CPU may still be notified. It finds the list without
        // this vCPU, which does not mind: it is awake.
        list.delist();
    }
    let here = here();
    descriptor.update(|control| control.with_nv(RUNNING).with_ndst(here).without_sn());
    find_suppressed(descriptor);
}

/// Sets ON for requests that came with SN set, which have not, and without which nobody looks for
/// them.
///
/// Whoever posts sets the request first and looks at SN then (a device does both in one transaction
/// of the cache line: VT-d, "Interrupt-Posting Hardware Operation"). SN was cleared before this, and
/// that was a full barrier. So either they have seen SN clear and do the rest, or their request is
/// seen here.
#[inline]
fn find_suppressed<W: Word>(descriptor: &Descriptor<W>) {
    if descriptor.any_requested() {
        descriptor.set_on();
    }
}

/// Prepares for the vCPU to leave the CPU it is on.
///
/// `waits` is called if interrupts are to wake it, and has to do [`wait`]; see [`load`].
#[inline(always)]
pub fn put<W: Word>(descriptor: &Descriptor<W>, leaving: Leaving, waits: impl FnOnce()) -> Plan {
    let plan = leaving.plan();
    match plan {
        Plan::Nothing => {}
        Plan::Wake => waits(),
        Plan::Suppress => {
            descriptor.set_sn();
        }
    }
    plan
}

/// Has interrupts wake the vCPU: [`Plan::Wake`].
#[inline(always)]
pub fn wait<W: Word>(descriptor: &Descriptor<W>, list: &impl Wakeup) {
    // SN is clear, as it has been since `load`. The list comes first: once NV is changed a
    // notification may arrive, and who is not on the list then is not woken.
    list.enlist();
    let before = descriptor.update(|control| control.with_nv(WAKEUP));
    if before.on() {
        // Whoever set ON has notified the vCPU on the other vector, where nobody listens, and
        // nobody else will be notified while ON is set. The task cannot be woken from here: it is
        // just being descheduled. The interrupt arrives when that is done.
        list.notify_self();
    }
}

/// Is this vCPU, which was found on a wakeup list, to be woken?
///
/// ON is set before the notification is sent, which is what led here (VT-d as above; SDM, "Posted-
/// Interrupt Processing", for IPIs), and is cleared by the vCPU only, when it is awake.
#[inline]
pub fn to_be_woken<W: Word>(descriptor: &Descriptor<W>) -> bool {
    descriptor.control().on()
}

/// Has the vCPU an interrupt that it has not seen?
///
/// Without SN whoever requests one also sets ON.
#[inline]
pub fn pending<W: Word>(descriptor: &Descriptor<W>) -> bool {
    let control = descriptor.control();
    control.on() || (control.sn() && descriptor.any_requested())
}

/// Drops all requests, because the state they would change is about to be overwritten.
///
/// ON goes first. Then a request that comes meanwhile can leave ON with nothing requested, which is
/// harmless, but never a request without ON, which would stay unseen.
pub fn pre_restore<W: Word>(descriptor: &Descriptor<W>) {
    descriptor.clear_on();
    descriptor.take_requests();
}

/// A control word of a vCPU that has not been loaded yet.
pub const fn initial() -> Control {
    Control::new(1 << 1).with_nv(RUNNING)
}
