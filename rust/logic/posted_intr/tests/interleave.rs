// SPDX-License-Identifier: GPL-2.0

//! No interrupt is lost: devices, other vCPUs and the scheduler at once, in every interleaving.
//!
//! The machine has two CPUs. Its vCPU halts as KVM has it halt, or spins in the guest, until it has
//! got all interrupts it was promised; if one never comes, all threads are blocked in the end, and
//! that is what loom finds. Each way this has gone wrong is here too, as a [`Fault`] that must be
//! found.

use loom::{
    model::Builder,
    sync::{
        atomic::{
            fence,
            AtomicBool,
            AtomicU64,
            AtomicUsize,
            Ordering::{
                AcqRel,
                Acquire,
                Relaxed,
                SeqCst, //
            }, //
        },
        Condvar,
        Mutex,
        MutexGuard, //
    },
    thread, //
};
use posted_intr::*;
use std::sync::{
    atomic::{
        AtomicUsize as Counter,
        Ordering, //
    },
    Arc, //
};

/// What may be done wrong. The commits are those of Linux that put it right.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The first device does not make vCPUs leave their CPUs again (a2486020a82e).
    NoUnblock,
    /// Whether the vCPU is on a list is concluded from whether there are devices (8b306e2f3c41).
    DelistIfDevices,
    /// The list of the CPU it comes to is searched, not of the one it left (d76fb40637fc).
    DelistHere,
    /// The lock of a list is taken with interrupts enabled (5f02ef741a78 is a case of it).
    LockWithInterrupts,
    /// The control word is written without regard to who sets ON meanwhile.
    BlindWrite,
    /// NV is changed before the vCPU is on the list.
    EnlistLate,
    /// ON from before NV was changed is ignored.
    NoSelfNotification,
    /// ON is looked at, and NV changed after that.
    AskFirst,
    /// SN is cleared without a barrier.
    NoBarrier,
    /// Requests are looked for before SN is cleared.
    LookFirst,
    /// Requests that came with SN set do not set ON.
    NoOn,
    /// SN stays as it is.
    LeaveSuppressed,
    /// NDST stays as it is.
    LeaveDestination,
    /// NV stays as it is when the vCPU comes back to the same CPU.
    LeaveVector,
    /// SN is set for preempted vCPUs only (6737557442e5).
    SuppressIfPreempted,
    /// Requests are dropped before ON is.
    RequestsFirst,
    /// Requests are dropped after the vCPU's state was restored (9cfec6d097c6).
    DropAfterRestore,
    /// What is pending is looked up in ON only.
    PendingIgnoresSuppressed,
    /// A vCPU that posts to itself does not wake itself (fdba608f15e2).
    NoWakeOfSelf,
    /// Nobody wakes those who wait on a CPU that goes offline.
    NoWakeOfStranded,
    /// They are woken while the CPU still takes interrupts.
    WakeBeforeDead,
}

use Fault as F;

/// How a vCPU leaves its CPU.
#[derive(Default)]
struct Leaving {
    /// It did not choose to: it stays runnable.
    preempted: bool,
    /// It waits for something to happen.
    blocking: bool,
    /// An interrupt would be that something.
    irqs_allowed: bool,
}

/// A word whose accesses are locked instructions of x86, or nearly.
struct Bits {
    word: AtomicU64,
    fault: Fault,
}

impl Bits {
    fn new(bits: u64, fault: Fault) -> Self {
        Self {
            word: AtomicU64::new(bits),
            fault,
        }
    }

    fn locked<R>(&self, access: impl FnOnce(&AtomicU64) -> R) -> R {
        fence(SeqCst);
        let result = access(&self.word);
        fence(SeqCst);
        result
    }
}

impl Word for Bits {
    fn bits(&self) -> u64 {
        self.word.load(Relaxed)
    }

    fn set<const BIT: u32>(&self) {
        self.test_and_set(BIT);
    }

    fn test_and_set(&self, bit: u32) -> bool {
        self.locked(|word| word.fetch_or(1 << bit, AcqRel)) & 1 << bit != 0
    }

    fn test_and_clear<const BIT: u32>(&self) -> bool {
        let mask = 1 << BIT;
        if self.fault == F::NoBarrier {
            return self.word.fetch_and(!mask, Relaxed) & mask != 0;
        }
        self.locked(|word| word.fetch_and(!mask, AcqRel)) & mask != 0
    }

    fn set_byte<const SHIFT: u32>(&self, byte: u8) {
        let with = |bits: u64| bits & !(0xff << SHIFT) | u64::from(byte) << SHIFT;
        if self.fault == F::BlindWrite {
            self.word.store(with(self.bits()), Relaxed);
            return;
        }
        self.locked(|word| word.fetch_update(AcqRel, Acquire, |bits| Some(with(bits))))
            .unwrap();
    }

    fn swap(&self, bits: u64) -> u64 {
        self.locked(|word| word.swap(bits, AcqRel))
    }

    fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
        if self.fault == F::BlindWrite {
            self.word.store(new, Relaxed);
            return Ok(());
        }
        self.locked(|word| word.compare_exchange(old, new, AcqRel, Acquire))
            .map(drop)
    }
}

const CPUS: usize = 2;
const NOWHERE: usize = CPUS;

/// Where the vCPU's thread is.
#[derive(Clone, Copy, PartialEq)]
enum Task {
    Runnable,
    /// It has said that it will sleep, or does.
    Sleeping,
}

struct Machine {
    fault: Fault,
    descriptor: Descriptor<Bits>,
    /// Held by who has disabled the CPU's interrupts, or handles one there.
    interrupts: [Mutex<()>; CPUS],
    /// Is the vCPU on the CPU's list?
    lists: [Mutex<bool>; CPUS],
    /// The CPU on whose list the vCPU's own list entry is.
    entry: AtomicUsize,
    /// The CPU that holds the lock of its own list with interrupts enabled.
    careless: AtomicUsize,
    task: Mutex<Task>,
    woken: Condvar,
    /// The CPU that runs the guest, and whether it was told of interrupts.
    guest: Mutex<(usize, bool)>,
    told: Condvar,
    /// May devices post to the vCPU?
    bypass: AtomicBool,
    /// KVM_REQ_UNBLOCK
    unblock: AtomicBool,
    /// The CPU that the vCPU's thread is on, until what it sent to itself has arrived.
    occupied: AtomicUsize,
    /// A CPU that is offline.
    dead: AtomicUsize,
    /// Notifications that found neither the guest nor anybody waiting.
    in_vain: AtomicUsize,
    /// Has the state of the vCPU been restored, and has a device posted after that?
    restored: AtomicBool,
    posted: AtomicBool,
}

impl Machine {
    fn new(fault: Fault, bypass: bool) -> Arc<Self> {
        let word = |bits| Bits::new(bits, fault);
        Arc::new(Self {
            fault,
            descriptor: Descriptor::new(
                [word(0), word(0), word(0), word(0)],
                word(initial().bits()),
                [word(0), word(0), word(0)],
            ),
            interrupts: [Mutex::new(()), Mutex::new(())],
            lists: [Mutex::new(false), Mutex::new(false)],
            entry: AtomicUsize::new(NOWHERE),
            careless: AtomicUsize::new(NOWHERE),
            task: Mutex::new(Task::Runnable),
            woken: Condvar::new(),
            guest: Mutex::new((NOWHERE, false)),
            told: Condvar::new(),
            bypass: AtomicBool::new(bypass),
            unblock: AtomicBool::new(false),
            occupied: AtomicUsize::new(0),
            dead: AtomicUsize::new(NOWHERE),
            in_vain: AtomicUsize::new(0),
            restored: AtomicBool::new(false),
            posted: AtomicBool::new(false),
        })
    }

    /// kvm_vcpu_wake_up()
    fn wake(&self) {
        *self.task.lock().unwrap() = Task::Runnable;
        self.woken.notify_one();
    }

    /// The handler of [`WAKEUP`], with interrupts disabled.
    fn wakeup_handler(&self, cpu: usize) {
        assert_ne!(
            self.careless.load(SeqCst),
            cpu,
            "deadlock: the handler has interrupted who holds its lock"
        );
        let list = self.lists[cpu].lock().unwrap();
        if *list && to_be_woken(&self.descriptor) {
            self.wake();
        }
    }

    /// An interrupt arrives at a CPU.
    fn interrupt(&self, sent: Notification) {
        let cpu = sent.destination.bits() as usize;
        let _disabled = self.interrupts[cpu].lock().unwrap();
        if self.dead.load(SeqCst) == cpu {
            return;
        }
        match sent.vector {
            WAKEUP => self.wakeup_handler(cpu),
            RUNNING => {
                let mut guest = self.guest.lock().unwrap();
                if guest.0 == cpu {
                    guest.1 = true;
                    self.told.notify_one();
                } else {
                    self.in_vain.fetch_add(1, SeqCst);
                }
            }
            vector => panic!("no vCPU uses vector {vector:#x}"),
        }
    }

    fn device_posts(&self, vector: u8) {
        if let Some(sent) = post_as_device(&self.descriptor, vector, false) {
            self.interrupt(sent);
        }
    }

    /// __vmx_deliver_posted_interrupt()
    fn kvm_posts(&self, vector: u8) {
        if !post_as_cpu(&self.descriptor, vector) {
            return;
        }
        let running = self.guest.lock().unwrap().0;
        if running != NOWHERE {
            self.interrupt(Notification {
                vector: RUNNING,
                destination: Ndst::x2apic(running as u32),
            });
        } else {
            self.wake();
        }
    }

    /// CPU 0 goes offline, unless the vCPU's thread is there, which would be moved first.
    fn cpu_goes(&self) {
        let wake_all = || {
            if *self.lists[0].lock().unwrap() {
                self.wake();
            }
        };
        if self.fault == F::WakeBeforeDead {
            wake_all();
        }
        {
            let _disabled = self.interrupts[0].lock().unwrap();
            if self.occupied.load(SeqCst) == 0 {
                return;
            }
            self.dead.store(0, SeqCst);
        }
        if !matches!(self.fault, F::NoWakeOfStranded | F::WakeBeforeDead) {
            wake_all();
        }
    }

    /// The first device that can post comes to a VM that has none.
    fn device_comes(&self) {
        self.bypass.store(true, SeqCst);
        if self.fault != F::NoUnblock {
            self.unblock.store(true, SeqCst);
            self.wake();
        }
    }
}

/// The thread of the vCPU.
struct Vcpu<'a> {
    machine: &'a Machine,
    cpu: usize,
    got: [u64; PIR_WORDS],
}

/// What [`load`] and [`put`] see.
struct OnCpu<'a> {
    machine: &'a Machine,
    cpu: usize,
    last: usize,
    self_notified: AtomicBool,
    late: AtomicBool,
}

impl OnCpu<'_> {
    fn enlist_now(&self) {
        let mut list = self.machine.lists[self.cpu].lock().unwrap();
        assert_eq!(
            self.machine.entry.load(Relaxed),
            NOWHERE,
            "on two lists at once"
        );
        self.machine.entry.store(self.cpu, Relaxed);
        *list = true;
    }
}

impl Wakeup for OnCpu<'_> {
    fn enlist(&self) {
        if self.machine.fault == F::EnlistLate {
            self.late.store(true, Relaxed);
        } else {
            self.enlist_now();
        }
    }

    fn delist(&self) {
        let machine = self.machine;
        if machine.fault == F::DelistIfDevices && !machine.bypass.load(SeqCst) {
            return;
        }
        let from = match machine.fault {
            F::DelistHere => self.cpu,
            _ => self.last,
        };
        let careless = machine.fault == F::LockWithInterrupts && from == self.cpu;
        let _disabled: Option<MutexGuard<'_, ()>> =
            (!careless).then(|| machine.interrupts[self.cpu].lock().unwrap());
        let mut list = machine.lists[from].lock().unwrap();
        if careless {
            machine.careless.store(self.cpu, SeqCst);
        }
        assert_eq!(
            machine.entry.load(Relaxed),
            from,
            "taken off a list that it is not on"
        );
        machine.entry.store(NOWHERE, Relaxed);
        *list = false;
        machine.careless.store(NOWHERE, SeqCst);
    }

    fn notify_self(&self) {
        if self.machine.fault != F::NoSelfNotification {
            self.self_notified.store(true, Relaxed);
        }
    }
}

impl Vcpu<'_> {
    fn on_cpu(&self, cpu: usize) -> OnCpu<'_> {
        OnCpu {
            machine: self.machine,
            cpu,
            last: self.cpu,
            self_notified: AtomicBool::new(false),
            late: AtomicBool::new(false),
        }
    }

    fn load(&mut self, cpu: usize) {
        let descriptor = &self.machine.descriptor;
        let list = self.on_cpu(cpu);
        let moved = cpu != self.cpu;
        let here = || Ndst::x2apic(cpu as u32);
        match self.machine.fault {
            F::LookFirst => {
                let any = descriptor.any_requested();
                let waited = descriptor.control().nv() == WAKEUP;
                if waited {
                    list.delist();
                }
                descriptor.update(|c| c.with_nv(RUNNING).with_ndst(here()).without_sn());
                if any {
                    descriptor.set_on();
                }
            }
            F::NoOn => {
                if descriptor.control().nv() == WAKEUP {
                    list.delist();
                }
                descriptor.update(|c| c.with_nv(RUNNING).with_ndst(here()).without_sn());
            }
            F::LeaveSuppressed => {
                if descriptor.control().nv() == WAKEUP {
                    list.delist();
                }
                descriptor.update(|c| c.with_nv(RUNNING).with_ndst(here()));
                if descriptor.any_requested() {
                    descriptor.set_on();
                }
            }
            F::LeaveDestination => {
                if descriptor.control().nv() == WAKEUP {
                    list.delist();
                }
                descriptor.update(|c| c.with_nv(RUNNING).without_sn());
                if descriptor.any_requested() {
                    descriptor.set_on();
                }
            }
            F::LeaveVector if !moved => {
                if descriptor.control().nv() == WAKEUP {
                    list.delist();
                }
                descriptor.clear_sn();
                if descriptor.any_requested() {
                    descriptor.set_on();
                }
            }
            _ => load(
                descriptor,
                moved,
                || {
                    if moved {
                        load_waited_elsewhere(descriptor, here, &list);
                    } else {
                        load_waited(descriptor, &list);
                    }
                },
                || load_moved(descriptor, here()),
            ),
        }
        self.cpu = cpu;
    }

    /// vmx_vcpu_pi_put(): KVM decides whether interrupts are to wake the vCPU.
    fn put(&self, leaving: Leaving, list: &OnCpu<'_>) {
        let machine = self.machine;
        if !machine.bypass.load(SeqCst) {
            return;
        }
        if leaving.blocking && leaving.irqs_allowed && !leaving.preempted {
            if machine.fault == F::AskFirst {
                list.enlist();
                let on = machine.descriptor.control().on();
                machine.descriptor.set_nv(WAKEUP);
                if on {
                    list.notify_self();
                }
                return;
            }
            wait(&machine.descriptor, list);
        } else if machine.fault != F::SuppressIfPreempted || leaving.preempted {
            put(&machine.descriptor);
        }
    }

    /// Leaves the CPU, then is loaded on `next`, when it is its turn and, if it sleeps, somebody
    /// has woken it.
    fn schedule(&mut self, next: usize, blocking: bool) {
        let machine = self.machine;
        let list = self.on_cpu(self.cpu);
        {
            // The scheduler has interrupts disabled.
            let _disabled = machine.interrupts[self.cpu].lock().unwrap();
            let leaving = Leaving {
                preempted: *machine.task.lock().unwrap() == Task::Runnable,
                blocking,
                irqs_allowed: true,
            };
            self.put(leaving, &list);
        }
        if list.late.load(Relaxed) {
            list.enlist_now();
        }
        if list.self_notified.load(Relaxed) {
            self.machine.interrupt(Notification {
                vector: WAKEUP,
                destination: Ndst::x2apic(self.cpu as u32),
            });
        }
        machine.occupied.store(NOWHERE, SeqCst);
        let mut task = machine.task.lock().unwrap();
        while *task == Task::Sleeping {
            task = machine.woken.wait(task).unwrap();
        }
        drop(task);
        machine.occupied.store(next, SeqCst);
        self.load(next);
    }

    fn pending(&self) -> bool {
        match self.machine.fault {
            F::PendingIgnoresSuppressed => self.machine.descriptor.control().on(),
            _ => pending(&self.machine.descriptor),
        }
    }

    /// kvm_vcpu_block(), then back on `next` if it slept.
    fn halt(&mut self, next: usize) {
        loop {
            *self.machine.task.lock().unwrap() = Task::Sleeping;
            // set_current_state() has a barrier.
            fence(SeqCst);
            if self.pending() || self.machine.unblock.swap(false, SeqCst) {
                break;
            }
            self.schedule(next, true);
        }
        *self.machine.task.lock().unwrap() = Task::Runnable;
    }

    fn take(&mut self) {
        for (got, new) in self.got.iter_mut().zip(take(&self.machine.descriptor)) {
            assert_eq!(*got & new, 0, "an interrupt came twice");
            *got |= new;
        }
    }

    fn has(&self, vectors: &[u8]) -> bool {
        vectors
            .iter()
            .all(|v| self.got[usize::from(v / 64)] & 1 << (v % 64) != 0)
    }

    /// Halts until it has got these interrupts.
    fn halt_for(&mut self, vectors: &[u8], next: usize) {
        loop {
            self.take();
            if self.has(vectors) {
                break;
            }
            self.halt(next);
        }
    }

    /// Runs the guest until it has got these interrupts. There is no exit.
    fn spin_for(&mut self, vectors: &[u8]) {
        // vcpu->mode = IN_GUEST_MODE, smp_mb()
        *self.machine.guest.lock().unwrap() = (self.cpu, false);
        fence(SeqCst);
        self.take();
        while !self.has(vectors) {
            let mut guest = self.machine.guest.lock().unwrap();
            while !guest.1 {
                guest = self.machine.told.wait(guest).unwrap();
            }
            guest.1 = false;
            drop(guest);
            self.take();
        }
        self.machine.guest.lock().unwrap().0 = NOWHERE;
    }
}

/// Runs `device` and `kvm` beside a vCPU, in every interleaving.
fn explore(
    fault: Fault,
    bypass: bool,
    vcpu: fn(&mut Vcpu<'_>),
    device: fn(&Machine),
    kvm: Option<fn(&Machine)>,
) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(if kvm.is_some() { 3 } else { 4 });
    let told = Arc::new(Counter::new(0));
    let count = told.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let machine = Machine::new(fault, bypass);
        let mut run = Vcpu {
            machine: &machine,
            cpu: 1,
            got: [0; PIR_WORDS],
        };
        run.load(0);
        let others = [Some(device), kvm].map(|other| {
            let machine = machine.clone();
            other.map(|other| thread::spawn(move || other(&machine)))
        });
        vcpu(&mut run);
        for other in others.into_iter().flatten() {
            other.join().unwrap();
        }
        let control = machine.descriptor.control();
        assert!(
            control.on() || !machine.descriptor.any_requested(),
            "requested, and nobody will look"
        );
        if fault == F::None {
            // Faults are to be found by what comes of them.
            assert_eq!(control.nv(), RUNNING, "stale NV");
            assert_eq!(control.ndst().bits() as usize, run.cpu, "stale NDST");
            assert!(!control.sn(), "stale SN");
            assert_eq!(machine.entry.load(Relaxed), NOWHERE, "still on a list");
        }
    });
    println!("{} interleavings", told.load(Ordering::Relaxed));
}

/// Stories, each of which loom tells in every way it can happen, and the faults that must show in them.
macro_rules! stories {
    ($(
        $(#[$doc:meta])*
        $story:ident($bypass:expr, $vcpu:expr, $device:expr, $kvm:expr) {
            $($fault:ident: $fails:ident $found:literal,)*
        }
    )*) => {$(
        $(#[$doc])*
        mod $story {
            use super::*;

            fn tell(fault: Fault) {
                explore(fault, $bypass, $vcpu, $device, $kvm);
            }

            #[test]
            fn goes_well() {
                tell(F::None);
            }

            $(
                #[test]
                #[should_panic(expected = $found)]
                fn $fails() {
                    tell(F::$fault);
                }
            )*
        }
    )*};
}

stories! {
    /// A device posts while the vCPU halts, which is waited for on another CPU.
    halted_and_moved(
        true,
        |vcpu| vcpu.halt_for(&[65], 1),
        |machine| machine.device_posts(65),
        None
    ) {
        EnlistLate: enlisting_late_fails "deadlock",
        AskFirst: asking_first_fails "deadlock",
        NoSelfNotification: not_notifying_itself_fails "deadlock",
        DelistHere: searching_the_wrong_list_fails "taken off a list that it is not on",
    }

    /// The same on the CPU it was on.
    halted(
        true,
        |vcpu| vcpu.halt_for(&[65], 0),
        |machine| machine.device_posts(65),
        None
    ) {
        EnlistLate: enlisting_late_fails "deadlock",
        NoSelfNotification: not_notifying_itself_fails "deadlock",
    }

    /// Something else wakes the vCPU while the notification is still on its way.
    woken_by_others(
        true,
        |vcpu| vcpu.halt_for(&[65], 0),
        |machine| machine.device_posts(65),
        Some(|machine| machine.device_comes())
    ) {
        EnlistLate: enlisting_late_fails "deadlock",
        NoSelfNotification: not_notifying_itself_fails "deadlock",
        LockWithInterrupts: locking_with_interrupts_enabled_fails "has interrupted who holds its lock",
    }

    /// ... and it goes on elsewhere.
    woken_by_others_and_moved(
        true,
        |vcpu| vcpu.halt_for(&[65], 1),
        |machine| machine.device_posts(65),
        Some(|machine| machine.device_comes())
    ) {
        EnlistLate: enlisting_late_fails "deadlock",
        DelistHere: searching_the_wrong_list_fails "taken off a list that it is not on",
    }

    /// Two halts, and the second is on the CPU that the first one left.
    halted_twice(
        true,
        |vcpu| {
            vcpu.halt_for(&[65], 1);
            vcpu.halt_for(&[65, 66], 0);
        },
        |machine| {
            machine.device_posts(65);
            machine.device_posts(66);
        },
        None
    ) {
        LeaveDestination: leaving_ndst_fails "deadlock",
        BlindWrite: writing_blindly_fails "deadlock",
        DelistHere: searching_the_wrong_list_fails "taken off a list that it is not on",
    }

    /// KVM and a device post, whoever is first sets ON and is the only one to notify.
    posted_to_by_two(
        true,
        |vcpu| vcpu.halt_for(&[65, 66], 1),
        |machine| machine.device_posts(65),
        Some(|machine| machine.kvm_posts(66))
    ) {
        NoSelfNotification: not_notifying_itself_fails "deadlock",
    }

    /// A VM without devices: the vCPU is on no list and KVM wakes it.
    without_devices(
        false,
        |vcpu| vcpu.halt_for(&[65, 66], 1),
        |machine| {
            machine.kvm_posts(65);
            machine.kvm_posts(66);
        },
        None
    ) {}

    /// The first device comes while the vCPU halts. KVM posts, too, and need not notify if the device
    /// has set ON.
    first_device(
        false,
        |vcpu| vcpu.halt_for(&[65, 66], 1),
        |machine| {
            machine.device_comes();
            machine.device_posts(65);
            machine.kvm_posts(66);
        },
        None
    ) {
        NoUnblock: leaving_vcpus_asleep_fails "deadlock",
    }

    /// The only device goes while the vCPU halts, and another one comes.
    unplugged(
        true,
        |vcpu| vcpu.halt_for(&[65, 66], 0),
        |machine| {
            machine.bypass.store(false, SeqCst);
            machine.kvm_posts(65);
            machine.device_comes();
            machine.device_posts(66);
        },
        None
    ) {
        DelistIfDevices: concluding_from_devices_fails "on two lists at once",
    }

    /// The vCPU is preempted, and goes on elsewhere in a guest that spins.
    preempted_and_moved(
        true,
        |vcpu| {
            vcpu.schedule(1, false);
            vcpu.spin_for(&[65]);
        },
        |machine| machine.device_posts(65),
        None
    ) {
        LookFirst: looking_first_fails "deadlock",
        NoOn: not_setting_on_fails "deadlock",
        LeaveSuppressed: leaving_sn_fails "deadlock",
        LeaveDestination: leaving_ndst_fails "deadlock",
        BlindWrite: writing_blindly_fails "deadlock",
    }

    /// The same on the CPU it was on, where clearing SN is all there is to do.
    preempted(
        true,
        |vcpu| {
            vcpu.schedule(0, false);
            vcpu.spin_for(&[65]);
        },
        |machine| machine.device_posts(65),
        None
    ) {
        NoBarrier: having_no_barrier_fails "deadlock",
        LookFirst: looking_first_fails "deadlock",
        NoOn: not_setting_on_fails "deadlock",
        LeaveSuppressed: leaving_sn_fails "deadlock",
    }

    /// It halts, and then spins on another CPU.
    spinning_elsewhere(
        true,
        |vcpu| {
            vcpu.halt_for(&[65], 1);
            vcpu.spin_for(&[65, 66]);
        },
        |machine| {
            machine.device_posts(65);
            machine.device_posts(66);
        },
        None
    ) {
        LeaveDestination: leaving_ndst_fails "deadlock",
    }

    /// It halts, and then spins on the same CPU.
    spinning(
        true,
        |vcpu| {
            vcpu.halt_for(&[65], 0);
            vcpu.spin_for(&[65, 66]);
        },
        |machine| {
            machine.device_posts(65);
            machine.device_posts(66);
        },
        None
    ) {
        LeaveVector: leaving_nv_fails "deadlock",
    }

    /// It is about to halt and is preempted, so that requests are kept with SN set.
    preempted_before_halt(
        true,
        |vcpu| {
            vcpu.schedule(0, false);
            vcpu.halt_for(&[65], 0);
        },
        |machine| machine.device_posts(65),
        None
    ) {
        NoBarrier: having_no_barrier_fails "deadlock",
        NoOn: not_setting_on_fails "deadlock",
    }

    /// It waits for something that is not an interrupt. Those that come disturb nobody, and are
    /// pending when it looks.
    masked(
        true,
        |vcpu| {
            let away = Leaving {
                blocking: true,
                ..Leaving::default()
            };
            vcpu.put(away, &vcpu.on_cpu(0));
            vcpu.machine.device_posts(65);
            assert_eq!(vcpu.machine.in_vain.load(SeqCst), 0, "a CPU is disturbed");
            assert!(vcpu.pending(), "an interrupt is not pending");
            vcpu.load(0);
            vcpu.halt_for(&[65], 0);
        },
        |_| {},
        None
    ) {
        SuppressIfPreempted: suppressing_if_preempted_fails "a CPU is disturbed",
        PendingIgnoresSuppressed: looking_at_on_only_fails "an interrupt is not pending",
    }

    /// The vCPU's own timer, an interrupt of its CPU, posts to it while it halts.
    own_timer(
        true,
        |vcpu| vcpu.halt_for(&[65], 0),
        |machine| {
            let _disabled = machine.interrupts[0].lock().unwrap();
            if post_as_cpu(&machine.descriptor, 65) && machine.fault != F::NoWakeOfSelf {
                machine.wake();
            }
        },
        None
    ) {
        NoWakeOfSelf: not_waking_itself_fails "deadlock",
    }

    /// The vCPU's state is restored while a device posts. What is posted afterwards stays.
    restored(
        true,
        |vcpu| {
            let machine = vcpu.machine;
            let restore = || machine.restored.store(true, SeqCst);
            match machine.fault {
                F::RequestsFirst => {
                    machine.descriptor.take_requests();
                    machine.descriptor.clear_on();
                    restore();
                }
                F::DropAfterRestore => {
                    restore();
                    pre_restore(&machine.descriptor);
                }
                _ => {
                    pre_restore(&machine.descriptor);
                    restore();
                }
            }
            if machine.posted.load(SeqCst) {
                vcpu.take();
                assert!(vcpu.has(&[65]), "an interrupt is dropped");
            }
        },
        |machine| {
            let restored = machine.restored.load(SeqCst);
            machine.device_posts(65);
            machine.posted.store(restored, SeqCst);
        },
        None
    ) {
        RequestsFirst: dropping_requests_first_fails "requested, and nobody will look",
        DropAfterRestore: dropping_after_restore_fails "an interrupt is dropped",
    }

    /// The CPU that the vCPU has halted on goes offline. Devices do not notice.
    goes_offline(
        true,
        |vcpu| vcpu.halt_for(&[65], 1),
        |machine| machine.device_posts(65),
        Some(|machine| machine.cpu_goes())
    ) {
        NoWakeOfStranded: not_waking_the_stranded_fails "deadlock",
        WakeBeforeDead: waking_the_stranded_early_fails "deadlock",
    }
}
