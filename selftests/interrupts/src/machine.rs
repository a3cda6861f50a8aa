// SPDX-License-Identifier: GPL-2.0

//! A virtual machine with the guest in it, and a thread for each of its processors.

use std::arch::x86_64::_rdtsc;
use std::os::fd::AsRawFd;
use std::panic::Location;
use std::ptr::{
    self,
    NonNull, //
};
use std::slice;
use std::sync::{
    mpsc,
    Arc,
    OnceLock, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use harness::check::{
    expect,
    expect_eq,
    missing_or_fail,
    Stop,
    Verdict, //
};
use kvm_bindings::{
    kvm_device_attr,
    kvm_enable_cap,
    kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi,
    kvm_mp_state,
    kvm_msi,
    kvm_userspace_memory_region,
    KvmIrqRouting,
    KVM_CAP_HALT_POLL,
    KVM_IRQ_ROUTING_MSI,
    KVM_MAX_CPUID_ENTRIES,
    KVM_MP_STATE_RUNNABLE,
    KVM_VCPU_TSC_CTRL,
    KVM_VCPU_TSC_OFFSET, //
};
use kvm_ioctls::{
    Kvm,
    VcpuExit,
    VcpuFd,
    VmFd, //
};
use nix::ioctl_write_ptr;
use nix::libc;
use nix::sched::{
    sched_getaffinity,
    sched_setaffinity,
    sched_yield,
    CpuSet, //
};
use nix::unistd::{
    gettid,
    Pid, //
};
use vmm_sys_util::eventfd::EventFd;

use crate::guest::{
    self,
    Mailbox,
    Mode,
    Shared,
    KICK,
    MEMORY,
    PORT_STOPPED,
    PORT_TRAPPED, //
};
use crate::stats::Stats;

ioctl_write_ptr!(kvm_set_device_attr, 0xAE, 0xE1, kvm_device_attr);

/// Within which anything has to happen that will happen at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Where a message has to be written to be an interrupt.
const MSI_ADDRESS: u32 = 0xFEE0_0000;

/// Whom an interrupt goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Cpu(usize),
    /// The first two, which is more than an IOMMU can post to.
    Both,
}

impl Target {
    fn msi(self, vector: u8) -> kvm_irq_routing_msi {
        const LOGICAL: u32 = 1 << 2;
        let destination = match self {
            Self::Cpu(cpu) => (cpu as u32) << 12,
            Self::Both => 0b11 << 12 | LOGICAL,
        };
        kvm_irq_routing_msi {
            address_lo: MSI_ADDRESS | destination,
            data: u32::from(vector),
            ..Default::default()
        }
    }
}

/// The guest's memory.
struct Memory(NonNull<u8>);

// SAFETY: It is a mapping of this process, whatever thread looks at it. Once the guest runs it is
// looked at as `Shared` only, which is made of atomics.
unsafe impl Send for Memory {}
// SAFETY: As above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new() -> Verdict<Self> {
        // SAFETY: A new mapping harms none there is.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MEMORY,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let memory = NonNull::new(address.cast::<u8>()).ok_or_else(|| Stop::fail("no memory"))?;
        // SAFETY: All of the mapping, which nobody else knows of yet.
        guest::lay_out(unsafe { slice::from_raw_parts_mut(memory.as_ptr(), MEMORY) });
        Ok(Self(memory))
    }
}

/// A virtual processor and the thread that runs it.
pub(crate) struct Cpu {
    pub(crate) stats: Stats,
    pub(crate) thread: Pid,
    /// Set when its guest has ended.
    outcome: Arc<OnceLock<Result<(), String>>>,
    /// How many interrupts of each vector were sent to it.
    sent: [u64; 256],
}

pub(crate) struct Machine {
    // The threads use the memory, so it stays for as long as the process, which is one test.
    memory: &'static Memory,
    vm: VmFd,
    pub(crate) cpus: Vec<Cpu>,
    irqfds: Vec<(u8, EventFd)>,
}

impl Machine {
    /// With a processor that never runs, but would take interrupts.
    pub(crate) fn idle() -> Verdict<(Self, VcpuFd)> {
        const INTERRUPTS: u64 = 1 << 9;
        let kvm = open_kvm()?;
        let machine = Self::create(&kvm)?;
        let vcpu = machine.create_cpu(&kvm, 0)?;
        let mut regs = guest::regs(0);
        regs.rflags |= INTERRUPTS;
        vcpu.set_regs(&regs).map_err(error("set the regs"))?;
        Ok((machine, vcpu))
    }

    fn create(kvm: &Kvm) -> Verdict<Self> {
        let vm = kvm.create_vm().map_err(error("create a VM"))?;
        vm.create_irq_chip().map_err(error("create an irqchip"))?;
        // A guest that halts shall halt at once.
        vm.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_HALT_POLL,
            ..Default::default()
        })
        .map_err(error("KVM_CAP_HALT_POLL"))?;
        let memory: &'static Memory = Box::leak(Box::new(Memory::new()?));
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.0.as_ptr().addr() as u64,
            ..Default::default()
        };
        // SAFETY: The mapping is never undone.
        unsafe { vm.set_user_memory_region(region) }.map_err(error("set the memory"))?;

        Ok(Self {
            memory,
            vm,
            cpus: Vec::new(),
            irqfds: Vec::new(),
        })
    }

    /// With so many processors, the first on the last of ours: the tests run on the others.
    pub(crate) fn start(cpus: usize) -> Verdict<Self> {
        let kvm = open_kvm()?;
        let mut machine = Self::create(&kvm)?;
        let ours = processors()?;
        for number in 0..cpus {
            let vcpu = machine.create_cpu(&kvm, number)?;
            let stats = Stats::of(&vcpu)?;
            let place = ours[(ours.len() - 1 + number) % ours.len()];
            let (tell, told) = mpsc::channel();
            let outcome = Arc::new(OnceLock::new());
            let ours = outcome.clone();
            thread::spawn(move || {
                let _ = tell.send(gettid());
                let _ = ours.set(run(vcpu));
            });
            let thread = told.recv().map_err(Stop::fail)?;
            move_to(thread, place)?;
            machine.cpus.push(Cpu {
                stats,
                thread,
                outcome,
                sent: [0; 256],
            });
        }
        move_to(gettid(), ours[0])?;
        for cpu in 0..cpus {
            let ready = machine.wait(cpu, || Ok(machine.shared(cpu).is_ready()))?;
            expect("the guest starts", ready)?;
        }
        Ok(machine)
    }

    fn create_cpu(&self, kvm: &Kvm, number: usize) -> Verdict<VcpuFd> {
        let vcpu = self
            .vm
            .create_vcpu(number as u64)
            .map_err(error("create a vCPU"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(error("get the CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(error("set the CPUID"))?;
        let mut sregs = vcpu.get_sregs().map_err(error("get the sregs"))?;
        guest::set_sregs(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(error("set the sregs"))?;
        vcpu.set_regs(&guest::regs(number))
            .map_err(error("set the regs"))?;
        vcpu.set_mp_state(kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        })
        .map_err(error("set the MP state"))?;
        // Its time is ours.
        let offset = 0u64;
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: (&raw const offset).addr() as u64,
            ..Default::default()
        };
        // SAFETY: The attribute names eight bytes for the kernel to read.
        unsafe { kvm_set_device_attr(vcpu.as_raw_fd(), &raw const attribute) }?;
        Ok(vcpu)
    }

    pub(crate) fn shared(&self, cpu: usize) -> &Shared {
        // SAFETY: It is inside of the memory, aligned, made of atomics, and zeroes are valid.
        unsafe { self.memory.0.add(guest::shared(cpu)).cast().as_ref() }
    }

    pub(crate) fn mailbox(&self, vector: u8) -> &Mailbox {
        // SAFETY: As above.
        unsafe { self.memory.0.add(guest::mailbox(vector)).cast().as_ref() }
    }

    /// Sends an interrupt by ioctl.
    pub(crate) fn send(&mut self, cpu: usize, vector: u8) -> Verdict {
        self.cpus[cpu].sent[usize::from(vector)] += 1;
        self.signal(cpu, vector)
    }

    /// Sends one that nobody counts.
    pub(crate) fn kick(&self, cpu: usize) -> Verdict {
        self.signal(cpu, KICK)
    }

    /// The same, and waits until it has arrived.
    #[track_caller]
    pub(crate) fn rouse(&self, cpu: usize) -> Verdict {
        let before = self.shared(cpu).count(KICK);
        self.kick(cpu)?;
        let roused = self.wait(cpu, || Ok(self.shared(cpu).count(KICK) > before))?;
        expect("a kick arrives", roused)
    }

    fn signal(&self, cpu: usize, vector: u8) -> Verdict {
        let msi = kvm_msi {
            address_lo: MSI_ADDRESS | (cpu as u32) << 12,
            data: u32::from(vector),
            ..Default::default()
        };
        match self.vm.signal_msi(msi) {
            Ok(1) => Ok(()),
            Ok(other) => Err(Stop::fail(format_args!("KVM_SIGNAL_MSI: {other}"))),
            Err(e) => Err(error("KVM_SIGNAL_MSI")(e)),
        }
    }

    /// Gives these vectors of the first processor an eventfd each.
    pub(crate) fn make_irqfds(&mut self, vectors: &[u8]) -> Verdict {
        let routes: Vec<_> = vectors.iter().map(|v| (*v, Target::Cpu(0))).collect();
        self.route(&routes)?;
        for (gsi, vector) in (0..).zip(vectors) {
            let event = EventFd::new(0)?;
            self.attach(gsi, &event)?;
            self.irqfds.push((*vector, event));
        }
        Ok(())
    }

    /// What interrupts from the first on are, in place of what they were.
    pub(crate) fn route(&self, routes: &[(u8, Target)]) -> Verdict {
        let entries: Vec<_> = (0..)
            .zip(routes)
            .map(|(gsi, (vector, target))| kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: target.msi(*vector),
                },
                ..Default::default()
            })
            .collect();
        let routing =
            KvmIrqRouting::from_entries(&entries).map_err(|e| Stop::fail(format_args!("{e:?}")))?;
        self.vm
            .set_gsi_routing(&routing)
            .map_err(error("set the GSI routing"))
    }

    /// Has an eventfd send an interrupt.
    pub(crate) fn attach(&self, gsi: u32, event: &EventFd) -> Verdict {
        self.vm
            .register_irqfd(event, gsi)
            .map_err(error("KVM_IRQFD"))
    }

    /// Sends the interrupt of one of the eventfds.
    pub(crate) fn send_by_irqfd(&mut self, index: usize) -> Verdict<u8> {
        let (vector, event) = &self.irqfds[index];
        self.cpus[0].sent[usize::from(*vector)] += 1;
        event.write(1)?;
        Ok(*vector)
    }

    /// Waits until the guest has counted all that was sent.
    #[track_caller]
    pub(crate) fn arrives(&self, cpu: usize, vector: u8) -> Verdict {
        let wanted = self.cpus[cpu].sent[usize::from(vector)];
        if self.wait(cpu, || Ok(self.shared(cpu).count(vector) >= wanted))? {
            return Ok(());
        }
        // Nobody delivers it; does another interrupt?
        self.kick(cpu)?;
        let late = self.wait(cpu, || Ok(self.shared(cpu).count(vector) >= wanted))?;
        Err(Stop::fail(format_args!(
            "interrupt {wanted} of vector {vector:#x} did not arrive{}",
            if late { " until another one came" } else { "" }
        )))
    }

    /// Waits for something to become true; false if it does not, an error if the guest has ended.
    #[track_caller]
    pub(crate) fn wait(
        &self,
        cpu: usize,
        mut until: impl FnMut() -> Verdict<bool>,
    ) -> Verdict<bool> {
        let deadline = Instant::now() + LIMIT;
        loop {
            for _ in 0..64 {
                if until()? {
                    return Ok(true);
                }
            }
            if let Some(Err(why)) = self.cpus[cpu].outcome.get() {
                return Err(Stop::fail(why));
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            sched_yield()?;
        }
    }

    /// Ends the guest. All that was sent to it must have arrived, and nothing else.
    #[track_caller]
    pub(crate) fn stop(self) -> Verdict {
        self.end()?;
        for (number, cpu) in self.cpus.iter().enumerate() {
            let shared = self.shared(number);
            for vector in (0..=u8::MAX).filter(|vector| *vector != KICK) {
                expect_eq(
                    format_args!("interrupts of vector {vector:#x}"),
                    shared.count(vector),
                    cpu.sent[usize::from(vector)],
                )?;
            }
            expect_eq("interrupts that were masked", shared.violations(), 0)?;
        }
        Ok(())
    }

    /// Ends the guest, whatever has arrived.
    #[track_caller]
    pub(crate) fn end(&self) -> Verdict {
        for (number, cpu) in self.cpus.iter().enumerate() {
            self.shared(number).order(Mode::Stop);
            self.kick(number)?;
            expect(
                "the guest stops",
                self.wait(number, || Ok(cpu.outcome.get().is_some()))?,
            )?;
        }
        Ok(())
    }

    /// Closes the VM's file under a virtual CPU that runs.
    pub(crate) fn close(mut self) -> Orphan {
        let cpu = self.cpus.swap_remove(0);
        // SAFETY: As in `shared()`, and the memory stays.
        let shared = unsafe { self.memory.0.add(guest::shared(0)).cast().as_ref() };
        Orphan {
            shared,
            outcome: cpu.outcome,
        }
    }

    /// Counts what others send: the guest itself, or a device.
    pub(crate) fn expect(&mut self, cpu: usize, vector: u8, count: u64) {
        self.cpus[cpu].sent[usize::from(vector)] += count;
    }

    /// Takes as many for right as there were, and says how many that is.
    pub(crate) fn accept(&mut self, vector: u8) -> u64 {
        let counts = (0..self.cpus.len()).map(|cpu| {
            let count = self.shared(cpu).count(vector);
            (cpu, count)
        });
        let counts: Vec<_> = counts.collect();
        for (cpu, count) in &counts {
            self.cpus[*cpu].sent[usize::from(vector)] = *count;
        }
        counts.iter().map(|(_, count)| count).sum()
    }
}

fn open_kvm() -> Verdict<Kvm> {
    Kvm::new().map_err(|error| missing_or_fail("/dev/kvm", error.into()))
}

/// A virtual CPU of a VM that has no file any more.
pub(crate) struct Orphan {
    shared: &'static Shared,
    outcome: Arc<OnceLock<Result<(), String>>>,
}

impl Orphan {
    /// Ends its guest, which has to spin.
    #[track_caller]
    pub(crate) fn stop(self) -> Verdict {
        self.shared.order(Mode::Stop);
        let deadline = Instant::now() + LIMIT;
        while self.outcome.get().is_none() {
            expect("the guest stops", Instant::now() < deadline)?;
            sched_yield()?;
        }
        Ok(())
    }
}

/// Runs a virtual CPU until its guest ends.
fn run(mut vcpu: VcpuFd) -> Result<(), String> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT_STOPPED, _)) => return Ok(()),
            Ok(VcpuExit::IoOut(PORT_TRAPPED, vector)) => {
                let vector = vector.first().copied().unwrap_or_default();
                return Err(format!("the guest was trapped by exception {vector}"));
            }
            Ok(exit) => return Err(format!("the guest has left by {exit:?}")),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return Err(format!("KVM_RUN: {e}")),
        }
    }
}

/// The processors this process might use before it chose one.
pub(crate) fn processors() -> Verdict<&'static [usize]> {
    static PROCESSORS: OnceLock<Vec<usize>> = OnceLock::new();
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok(PROCESSORS.get_or_init(|| {
        (0..CpuSet::count())
            .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
            .collect()
    }))
}

pub(crate) fn move_to(thread: Pid, processor: usize) -> Verdict {
    let mut set = CpuSet::new();
    set.set(processor)?;
    Ok(sched_setaffinity(thread, &set)?)
}

/// The time, in the unit and from the start that the guest has, too.
pub(crate) fn now() -> u64 {
    // SAFETY: The instruction is everywhere where KVM is.
    unsafe { _rdtsc() }
}

/// Says what was refused.
#[track_caller]
fn error(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Stop {
    let at = Location::caller();
    move |error| Stop::Fail(format!("{}:{}: {what}: {error}", at.file(), at.line()))
}
