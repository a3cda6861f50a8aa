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
//! is how a vCPU leaves while nothing but the host can post to it, and the host, which wakes it by
//! other means, neither calls [`put`] nor [`wait`]. When the first device comes, such a vCPU must leave its CPU once more: the next
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

/// Has the vCPU's interrupts go to the CPU it is loaded on.
///
/// `moved` tells whether it was on another CPU the last time. `waited` is called if it left to wait for
/// interrupts, and has to do [`load_waited`] or [`load_waited_elsewhere`]; else `came` is called if it
/// comes from another CPU, and has to do [`load_moved`]. So the caller decides what these cost a vCPU
/// that needs none of them.
#[inline(always)]
pub fn load<W: Word>(
    descriptor: &Descriptor<W>,
    moved: bool,
    waited: impl FnOnce(),
    came: impl FnOnce(),
) {
    // NV is written by `load` and `wait` only, which no two CPUs do to one vCPU at a time: it is the
    // record of what was done when it left. Whether devices are there now says nothing about that.
    if descriptor.control().nv() == WAKEUP {
        waited();
    } else if moved {
        came();
    // If SN was clear, nothing was suppressed, and ON is what it should be.
    } else if descriptor.clear_sn() {
        find_suppressed(descriptor);
    }
}

/// [`load`] of a vCPU that waited for interrupts, and is still where it did.
#[inline(always)]
pub fn load_waited<W: Word>(descriptor: &Descriptor<W>, list: &impl Wakeup) {
    // Until NV is changed below this CPU may still be notified. It finds the list without this
    // vCPU, which does not mind: it is awake.
    list.delist();
    // SN has been clear since `wait`, so nothing was suppressed.
    descriptor.set_nv(RUNNING);
}

/// [`load`] of a vCPU that waited for interrupts on another CPU. `here` is this one.
#[inline(always)]
pub fn load_waited_elsewhere<W: Word>(
    descriptor: &Descriptor<W>,
    here: impl FnOnce() -> Ndst,
    list: &impl Wakeup,
) {
    // As above.
    list.delist();
    let here = here();
    descriptor.update(|control| control.with_nv(RUNNING).with_ndst(here));
}

/// [`load`] of a vCPU that comes from another CPU, and did not wait. `here` is this CPU.
#[inline(always)]
pub fn load_moved<W: Word>(descriptor: &Descriptor<W>, here: Ndst) {
    let before = descriptor.update(|control| control.with_ndst(here).without_sn());
    if before.sn() {
        find_suppressed(descriptor);
    }
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

/// The vCPU leaves its CPU and comes back without an interrupt that wakes it: it is runnable, or waits
/// for something else. A notification would disturb a CPU for nothing.
#[inline(always)]
pub fn put<W: Word>(descriptor: &Descriptor<W>) {
    descriptor.set_sn();
}

/// The vCPU leaves its CPU until something happens, which an interrupt is.
///
/// Says whether one had come already, so that it had to notify itself.
#[inline(always)]
pub fn wait<W: Word>(descriptor: &Descriptor<W>, list: &impl Wakeup) -> bool {
    // SN is clear, as it has been since `load`. The list comes first: once NV is changed a
    // notification may arrive, and who is not on the list then is not woken.
    list.enlist();
    descriptor.set_nv(WAKEUP);
    // Whoever sets ON looks at NV in the same instant, and both are full barriers: ON is seen here, or
    // the new NV there.
    let notified = descriptor.control().on();
    if notified {
        // Whoever set ON has notified the vCPU on the other vector, where nobody listens, and
        // nobody else will be notified while ON is set. The task cannot be woken from here: it is
        // just being descheduled. The interrupt arrives when that is done.
        list.notify_self();
    }
    notified
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
