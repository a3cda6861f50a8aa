// SPDX-License-Identifier: GPL-2.0

//! Devices whose interrupts an IOMMU posts, both made of software by the module `vrs_bypass`.

use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use harness::check::{
    expect_eq,
    missing_or_fail,
    Stop,
    Verdict, //
};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::guest::Mailbox;
use crate::machine::LIMIT;
use crate::samples::Samples;

/// Structures and requests of `selftests/kmod/vrs_bypass.h`.
mod fixture {
    #[repr(C)]
    pub(super) struct Start {
        pub(super) mailbox: u64,
        pub(super) posts: u64,
        pub(super) burst: u32,
        pub(super) gap: u32,
        pub(super) seed: u32,
        pub(super) when: u32,
        pub(super) cpu: i32,
        pub(super) patience: u32,
    }

    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Wait {
        pub(super) posts: u64,
        pub(super) control: u64,
        pub(super) error: i32,
        pub(super) unused: u32,
    }

    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Measure {
        pub(super) vcpu: i32,
        pub(super) rounds: u32,
        /// Those of [`super::SYMBOLS`].
        pub(super) symbols: [u64; super::SYMBOLS.len()],
        pub(super) costs: [u64; super::COSTS.len()],
    }

    nix::ioctl_write_ptr!(trigger, 0xee, 0, i32);
    nix::ioctl_write_ptr!(connect, 0xee, 1, u32);
    nix::ioctl_none!(disconnect, 0xee, 2);
    nix::ioctl_write_ptr!(start, 0xee, 3, Start);
    nix::ioctl_read!(wait, 0xee, 4, Wait);
    nix::ioctl_read!(counts, 0xee, 5, super::Counts);
    nix::ioctl_readwrite!(measure, 0xee, 6, Measure);
}

const FIXTURE: &str = "/dev/vrs_bypass";

/// Functions of KVM's that are measured, or needed for that.
const SYMBOLS: [&str; 5] = [
    "vcpu_load",
    "vcpu_put",
    "vmx_vcpu_pi_load",
    "vmx_vcpu_pi_put",
    "__sysvec_kvm_posted_intr_wakeup_ipi",
];

/// What is measured. The first is a part of all others.
pub(crate) const COSTS: [&str; 9] = [
    "reading the time",
    "put, preempted",
    "load, was preempted",
    "put, waits",
    "load, has waited",
    "load, was moved",
    "wakeup, nobody waits",
    "wakeup, a vCPU waits",
    "wakeup, of a vCPU",
];

/// When a device posts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum When {
    #[default]
    AtOnce = 0,
    /// The virtual CPU has halted, and notifications go to the host.
    Waiting = 1,
    /// The virtual CPU has left its processor, and wants no notifications.
    Suppressed = 2,
    /// The device is connected.
    Connected = 3,
}

/// What a device does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) posts: u64,
    /// So many at a time are to be seen before it goes on; it does not wait for any if 0.
    pub(crate) burst: u32,
    /// After which it lets less than so many cycles pass.
    pub(crate) gap: u32,
    pub(crate) seed: u64,
    pub(crate) when: When,
    /// The processor it interrupts from, if not any.
    pub(crate) from: Option<usize>,
}

/// What the IOMMU has done since the device was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Counts {
    /// KVM has redirected the interrupt: to a vCPU, to the host, and in vain.
    pub(crate) set: u64,
    pub(crate) cleared: u64,
    pub(crate) refused: u64,
    /// Interrupts that went to the host, and to a descriptor, by the notification they caused.
    pub(crate) remapped: u64,
    pub(crate) notified_running: u64,
    pub(crate) notified_waiting: u64,
    pub(crate) misdirected: u64,
    pub(crate) outstanding: u64,
    pub(crate) suppressed: u64,
    pub(crate) merged: u64,
    pub(crate) is_set: u32,
    pub(crate) irq: u32,
}

/// A device with one interrupt. It is disconnected when dropped.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    pub(crate) event: EventFd,
}

impl Device {
    /// Its interrupt goes to the host.
    pub(crate) fn new() -> Verdict<Self> {
        let file = OpenOptions::new().read(true).write(true).open(FIXTURE);
        let file = file.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENODEV | Errno::EOPNOTSUPP) => Stop::skip("posted interrupts"),
            _ => missing_or_fail(FIXTURE, error),
        })?;
        let event = EventFd::new(0)?;
        // SAFETY: The request reads the number of a file.
        unsafe { fixture::trigger(file.as_raw_fd(), &event.as_raw_fd()) }?;
        Ok(Self { file, event })
    }

    /// Lets KVM redirect its interrupt.
    pub(crate) fn connect(&self) -> Verdict {
        Ok(self.try_connect(false)?)
    }

    /// The same, with an IOMMU that may refuse.
    pub(crate) fn try_connect(&self, refuse: bool) -> Result<(), Errno> {
        // SAFETY: The request reads a number.
        unsafe { fixture::connect(self.file.as_raw_fd(), &u32::from(refuse)) }?;
        Ok(())
    }

    pub(crate) fn disconnect(&self) -> Verdict {
        // SAFETY: The request takes nothing.
        unsafe { fixture::disconnect(self.file.as_raw_fd()) }?;
        Ok(())
    }

    /// Has it begin to interrupt.
    pub(crate) fn start(&self, mailbox: &Mailbox, job: Job) -> Verdict {
        let job = fixture::Start {
            mailbox: (&raw const *mailbox).addr() as u64,
            posts: job.posts,
            burst: job.burst,
            gap: job.gap,
            // Half of it is as random as all of it.
            seed: job.seed as u32,
            when: job.when as u32,
            cpu: job.from.map_or(-1, |cpu| cpu as i32),
            patience: LIMIT.as_millis() as u32,
        };
        // SAFETY: The request reads the structure. The device writes to the mailbox, which is made
        // of atomics, and keeps its memory.
        unsafe { fixture::start(self.file.as_raw_fd(), &job) }?;
        Ok(())
    }

    /// Waits until it has done its job; all that it waited for must have been seen.
    #[track_caller]
    pub(crate) fn finish(&self, machine: &crate::machine::Machine, vector: u8) -> Verdict {
        let outcome = self.wait()?;
        if outcome.error == 0 {
            return expect_eq(
                "notifications to nobody",
                self.counts()?.misdirected,
                0, //
            );
        }
        let what = match Errno::from_raw(-outcome.error) {
            Errno::ETIMEDOUT => {
                // Nobody delivers it; does another interrupt?
                for cpu in 0..machine.cpus.len() {
                    machine.kick(cpu)?;
                }
                let late = machine.wait(0, || Ok(machine.mailbox(vector).is_seen()))?;
                if late {
                    "did not arrive until another one came"
                } else {
                    "did not arrive"
                }
            }
            Errno::EAGAIN => "was the last: the moment for another did not come",
            _ => "was the last",
        };
        let control = outcome.control;
        Err(Stop::fail(format_args!(
            "interrupt {} of vector {vector:#x} {what}: ON {} SN {} NV {:#x} NDST {:#x}, {:?}",
            outcome.posts,
            control & 1,
            control >> 1 & 1,
            control >> 16 & 0xFF,
            control >> 32,
            self.counts()?
        )))
    }

    /// Waits for it, whatever becomes of its interrupts.
    pub(crate) fn wait_only(&self) -> Verdict {
        expect_eq("the device comes to an end", self.wait()?.error, 0)
    }

    fn wait(&self) -> Verdict<fixture::Wait> {
        let mut outcome = fixture::Wait::default();
        // SAFETY: The request fills the structure.
        unsafe { fixture::wait(self.file.as_raw_fd(), &raw mut outcome) }?;
        Ok(outcome)
    }

    pub(crate) fn counts(&self) -> Verdict<Counts> {
        let mut counts = Counts::default();
        // SAFETY: As above.
        unsafe { fixture::counts(self.file.as_raw_fd(), &raw mut counts) }?;
        Ok(counts)
    }

    /// What posted interrupts take KVM in cycles, for a virtual CPU that the interrupt is posted to,
    /// in so many rounds.
    pub(crate) fn measure(&self, vcpu: &VcpuFd, rounds: u32) -> Verdict<[u64; COSTS.len()]> {
        let mut measure = fixture::Measure {
            vcpu: vcpu.as_raw_fd(),
            rounds,
            symbols: find_symbols()?,
            ..Default::default()
        };
        // SAFETY: The request reads and fills the structure.
        unsafe { fixture::measure(self.file.as_raw_fd(), &raw mut measure) }?;
        Ok(measure.costs)
    }

    /// How long its last job's interrupts took.
    pub(crate) fn samples(&self) -> Verdict<Samples> {
        let (mut samples, mut chunk, mut at) = (Samples::default(), [0; 1 << 15], 0);
        loop {
            let length = self.file.read_at(&mut chunk, at)?;
            if length == 0 {
                return Ok(samples);
            }
            at += length as u64;
            for cycles in chunk[..length].chunks_exact(size_of::<u64>()) {
                let cycles = cycles.try_into().map_err(Stop::fail)?;
                samples.push(u64::from_ne_bytes(cycles));
            }
        }
    }
}

/// Where they are.
fn find_symbols() -> Verdict<[u64; SYMBOLS.len()]> {
    const KALLSYMS: &str = "/proc/kallsyms";
    let text = fs::read_to_string(KALLSYMS).map_err(|error| missing_or_fail(KALLSYMS, error))?;
    let mut addresses = [0; SYMBOLS.len()];
    // `ffffffffc0209a80 T vmx_vcpu_pi_load	[kvm_intel]`
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (address, name) = (words.next(), words.nth(1));
        if let Some(index) = SYMBOLS.iter().position(|symbol| name == Some(symbol)) {
            let address = address.and_then(|word| u64::from_str_radix(word, 16).ok());
            addresses[index] = address.unwrap_or_default();
        }
    }
    if let Some(index) = addresses.iter().position(|address| *address == 0) {
        let symbol = SYMBOLS[index];
        return Err(Stop::skip(format_args!("{symbol} in {KALLSYMS}")));
    }
    Ok(addresses)
}
