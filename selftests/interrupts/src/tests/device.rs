// SPDX-License-Identifier: GPL-2.0

//! Interrupts of devices, which an IOMMU posts: to a virtual CPU that runs, that halts or is about
//! to, that is moved or preempted, whose first device comes while it halts, and while the interrupt
//! is redirected.
//!
//! The device waits for each interrupt to be seen before it causes the next one, unless a test is
//! about bursts, so that one that nobody delivers is noticed, and not helped by the one after it.

use std::fs;
use std::hint;
use std::ops::RangeInclusive;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::thread;

use harness::check::{
    expect,
    expect_eq,
    missing_or_fail,
    Stop,
    Verdict, //
};
use harness::env::Env;
use harness::tests;
use nix::errno::Errno;
use nix::sched::sched_yield;
use nix::unistd::gettid;
use rand::RngExt;

use super::halt::wait_for_sleep;
use super::run::random;
use crate::device::{
    Counts,
    Device,
    Job,
    When,
    COSTS, //
};
use crate::guest::Mode;
use crate::machine::{
    move_to,
    processors,
    Machine,
    Target, //
};
use crate::provider::{
    self,
    Report,
    Watch, //
};
use crate::samples::Samples;
use crate::settings;

tests! {
    "device.run", "a device's interrupts are posted to a virtual CPU that runs, which hardly exits" => run;
    "device.asleep", "they wake one that sleeps, from its own processor and from another" => asleep;
    "device.race", "and one that is about to, at whatever moment" => race;
    "device.move", "and one that is moved around" => moved;
    "device.preempted", "those that come while another thread has its processor wait, and are not forgotten" => preempted;
    "device.many", "bursts of four devices from all processors arrive" => many;
    "device.first", "the first device comes while the virtual CPU sleeps" => first;
    "device.first-race", "or while it is about to" => first_race;
    "device.retarget", "the guest redirects an interrupt to another virtual CPU, and to both" => retarget;
    "device.disconnect", "a device that is disconnected and connected interrupts by way of the host meanwhile" => disconnect;
    "device.refused", "so does one that the IOMMU has no entry for" => refused;
    "device.teardown", "a device goes on while its VM ends, and then goes to the host" => teardown;
    "device.reload", "the module that handles posted interrupts is loaded again between VMs" => reload;
    "offline.asleep", "a device interrupts a virtual CPU whose processor went offline while it slept" => offline;
    "cost.posted-intr", "loading and putting vCPUs, and waking them, can be measured" => cost;
}

const VECTOR: u8 = 0x61;
/// From here on, for those that are there to disturb.
const OTHERS: u8 = 0x71;

/// As long as the virtual CPU takes from an interrupt until it sleeps, or longer, in cycles.
const GAP: u32 = 1 << 14;

/// A guest, and a device whose interrupt is one of its first virtual CPU's.
struct Setting {
    machine: Machine,
    device: Device,
    watch: Watch,
    others: Vec<Device>,
    samples: Samples,
}

/// What has become of it.
struct Ended {
    counts: Counts,
    /// If kvm_x86_rs handles posted interrupts.
    report: Option<Report>,
    samples: Samples,
}

impl Setting {
    /// With the device connected, so that its interrupts are posted.
    fn start(cpus: usize, mode: Mode) -> Verdict<Self> {
        let setting = Self::disconnected(cpus, mode)?;
        setting.device.connect()?;
        expect("it is posted", setting.device.counts()?.is_set != 0)?;
        Ok(setting)
    }

    /// With the device's interrupts going by way of the host.
    fn disconnected(cpus: usize, mode: Mode) -> Verdict<Self> {
        let watch = Watch::begin()?;
        // Before the machine, for KVM to know that there is an IOMMU.
        let device = Device::new()?;
        let machine = Machine::start(cpus)?;
        machine.route(&[(VECTOR, Target::Cpu(0))])?;
        machine.attach(0, &device.event)?;
        for cpu in 0..cpus {
            machine.shared(cpu).order(mode);
        }
        Ok(Self {
            machine,
            device,
            watch,
            others: Vec::new(),
            samples: Samples::default(),
        })
    }

    /// Has the device interrupt, and something else happen meanwhile; how often that was.
    fn meanwhile(
        &mut self,
        job: Job,
        mut change: impl FnMut(&Self, u64) -> Verdict,
    ) -> Verdict<u64> {
        let this = &*self;
        this.device.start(this.machine.mailbox(VECTOR), job)?;
        let turns = thread::scope(|scope| {
            let device = scope.spawn(|| this.device.finish(&this.machine, VECTOR));
            let mut turns = 0;
            while !device.is_finished() {
                change(this, turns)?;
                turns += 1;
                sched_yield()?;
            }
            match device.join() {
                Ok(finished) => finished.map(|()| turns),
                Err(_) => Err(Stop::fail("the thread that waits has panicked")),
            }
        })?;
        self.samples.append(self.device.samples()?);
        Ok(turns)
    }

    /// Has the device interrupt.
    fn post(&mut self, job: Job) -> Verdict {
        self.device.start(self.machine.mailbox(VECTOR), job)?;
        self.finish()
    }

    /// Waits until the device has done its job.
    fn finish(&mut self) -> Verdict {
        self.device.finish(&self.machine, VECTOR)?;
        self.samples.append(self.device.samples()?);
        Ok(())
    }

    /// Ends the guest, which must have had so many interrupts.
    #[track_caller]
    fn end(mut self, arrived: RangeInclusive<u64>) -> Verdict<Ended> {
        let count = self.machine.accept(VECTOR);
        expect(
            format_args!("{count} interrupts arrived of {arrived:?}"),
            arrived.contains(&count),
        )?;
        let devices = || self.others.iter().chain([&self.device]);
        for device in devices() {
            device.disconnect()?;
        }
        self.machine.stop()?;
        let counts = self.device.counts()?;
        println!("# {counts:?}");
        let report = self.watch.end(&devices().collect::<Vec<_>>())?;
        Ok(Ended {
            counts,
            report,
            samples: self.samples,
        })
    }
}

/// As many interrupts as `--rounds` says, from the first processor, one at a time.
fn job() -> Verdict<Job> {
    Ok(Job {
        posts: settings().rounds,
        burst: 1,
        gap: 0,
        seed: settings().seed,
        when: When::AtOnce,
        from: Some(processors()?[0]),
    })
}

/// Each arrives once.
fn once(posts: u64) -> RangeInclusive<u64> {
    posts..=posts
}

/// Nearly all: the host may come between deciding to post and posting.
fn most(count: u64, all: u64) -> bool {
    count <= all && count >= all - all / 20
}

fn run(_: &Env) -> Verdict {
    let (mut setting, job) = (Setting::start(1, Mode::Spin)?, job()?);
    let exits = |setting: &Setting| setting.machine.cpus[0].stats.get("exits");
    let before = exits(&setting)?;
    setting.post(job)?;
    let exits = exits(&setting)? - before;
    println!("# {exits} exits during {} interrupts", job.posts);
    // There is also the timer of the machine itself.
    expect("few exits", exits < job.posts / 4)?;
    let ended = setting.end(once(job.posts))?;
    expect(
        "most notify",
        most(ended.counts.notified_running, job.posts),
    )?;
    ended.samples.report("device.run")
}

fn asleep(_: &Env) -> Verdict {
    let (mut setting, mut posts) = (Setting::start(1, Mode::Halt)?, 0);
    for place in processors()? {
        let job = Job {
            when: When::Waiting,
            from: Some(*place),
            ..job()?
        };
        setting.post(job)?;
        posts += job.posts;
    }
    let ended = setting.end(once(posts))?;
    expect("most wake", most(ended.counts.notified_waiting, posts))?;
    if let Some(report) = ended.report {
        expect("all wait", report.waited >= posts)?;
        expect(
            "notifications arrive",
            report.notifications >= ended.counts.notified_waiting,
        )?;
        expect("... and wake", report.woken >= posts - posts / 20)?;
    }
    ended.samples.report("device.asleep")
}

fn race(_: &Env) -> Verdict {
    let mut setting = Setting::start(1, Mode::Halt)?;
    let job = Job {
        gap: GAP,
        posts: settings().rounds * 2,
        ..job()?
    };
    setting.post(job)?;
    let ended = setting.end(once(job.posts))?;
    let counts = ended.counts;
    expect(
        "some come early and some late",
        counts.notified_running.min(counts.notified_waiting) > job.posts / 100,
    )?;
    if let Some(report) = ended.report {
        expect("some come just then", report.notified_themselves > 0)?;
    }
    ended.samples.report("device.race")
}

fn moved(_: &Env) -> Verdict {
    let places = processors()?;
    if places.len() < 2 {
        return Err(Stop::skip("a second processor"));
    }
    let mut setting = Setting::start(1, Mode::Halt)?;
    let job = Job {
        gap: GAP,
        from: None,
        ..job()?
    };
    let thread = setting.machine.cpus[0].thread;
    let moves = setting.meanwhile(job, |_, turn| {
        move_to(thread, places[turn as usize % places.len()])
    })?;
    println!("# moved {moves} times");
    expect("it was moved", moves > job.posts / 20)?;
    setting.end(once(job.posts))?.samples.report("device.move")
}

fn preempted(_: &Env) -> Verdict {
    let mut setting = Setting::start(1, Mode::Spin)?;
    // Each turn of the other thread takes milliseconds.
    let job = Job {
        when: When::Suppressed,
        posts: settings().rounds.div_ceil(20),
        ..job()?
    };
    let places = processors()?;
    let (place, done) = (places[places.len() - 1], AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let moved = move_to(gettid(), place);
            while moved.is_ok() && !done.load(Ordering::Relaxed) {
                hint::spin_loop();
            }
        });
        let posted = setting.post(job);
        done.store(true, Ordering::Relaxed);
        posted
    })?;
    let ended = setting.end(once(job.posts))?;
    expect(
        "most are suppressed",
        most(ended.counts.suppressed, job.posts),
    )
}

fn many(_: &Env) -> Verdict {
    const DEVICES: u8 = 4;
    let mut random = random();
    let (mut setting, places) = (Setting::start(1, Mode::Halt)?, processors()?);
    let mut routes = vec![(VECTOR, Target::Cpu(0))];
    for number in 0..DEVICES {
        routes.push((OTHERS + number, Target::Cpu(0)));
        setting.others.push(Device::new()?);
    }
    setting.machine.route(&routes)?;
    let mut bursts = Vec::new();
    for (number, device) in (0..DEVICES).zip(&setting.others) {
        setting
            .machine
            .attach(u32::from(number) + 1, &device.event)?;
        device.connect()?;
        let job = Job {
            burst: 1 << (2 * number),
            gap: GAP >> number,
            seed: random.random(),
            from: Some(places[usize::from(number) % places.len()]),
            ..job()?
        };
        device.start(setting.machine.mailbox(OTHERS + number), job)?;
        bursts.push(job);
    }
    let job = job()?;
    setting.post(job)?;
    for (number, device) in (0..).zip(&setting.others) {
        device.finish(&setting.machine, OTHERS + number)?;
    }
    let (mut arrived, mut posts) = (0, 0);
    for (number, job) in (0..).zip(&bursts) {
        let count = setting.machine.accept(OTHERS + number);
        // What is requested again before it has come, comes once.
        let fewest = job.posts.div_ceil(u64::from(job.burst));
        expect("each burst arrives", (fewest..=job.posts).contains(&count))?;
        arrived += count;
        posts += job.posts;
    }
    println!("# {arrived} interrupts came of {posts} in bursts");
    setting.end(once(job.posts))?.samples.report("device.many")
}

fn first(_: &Env) -> Verdict {
    firsts("device.first", |machine| wait_for_sleep(machine, 0))
}

fn first_race(_: &Env) -> Verdict {
    let mut random = random();
    firsts("device.first-race", |_| {
        for _ in 0..random.random_range(0..GAP / 16) {
            hint::spin_loop();
        }
        Ok(())
    })
}

/// A device comes to a VM without any, again and again, and interrupts.
fn firsts(test: &str, mut dawdle: impl FnMut(&Machine) -> Verdict) -> Verdict {
    let mut setting = Setting::disconnected(1, Mode::Halt)?;
    let (rounds, places) = (settings().rounds.div_ceil(20), processors()?);
    for round in 0..rounds {
        // It goes to sleep once more, not to be woken by any device.
        setting.machine.rouse(0)?;
        dawdle(&setting.machine)?;
        // Nothing but its coming makes the virtual CPU expect notifications: does it, and what if
        // the first interrupt does not wait for that?
        let (when, from) = if round % 2 == 0 {
            (When::Waiting, places[0])
        } else {
            (When::Connected, places[places.len() - 1])
        };
        let job = Job {
            posts: 1,
            when,
            from: Some(from),
            ..job()?
        };
        setting.device.start(setting.machine.mailbox(VECTOR), job)?;
        setting.device.connect()?;
        setting.finish()?;
        setting.device.disconnect()?;
    }
    let ended = setting.end(once(rounds))?;
    let counts = ended.counts;
    expect_eq("interrupts to the host", counts.remapped, 0)?;
    expect(
        "many come before notifications are expected",
        counts.notified_running > rounds / 4,
    )?;
    expect_eq(
        "connections",
        (counts.set, counts.cleared),
        (rounds, rounds),
    )?;
    if let Some(report) = ended.report {
        expect_eq("first devices", report.bypass, rounds)?;
    }
    ended.samples.report(test)
}

fn retarget(_: &Env) -> Verdict {
    let mut setting = Setting::start(2, Mode::Halt)?;
    let job = Job { gap: GAP, ..job()? };
    let targets = [Target::Cpu(1), Target::Both, Target::Cpu(0)];
    let changes = setting.meanwhile(job, |setting, turn| {
        let target = targets[turn as usize % targets.len()];
        setting.machine.route(&[(VECTOR, target)])
    })?;
    println!("# redirected {changes} times");
    // One may have seen what the other is yet to see.
    for cpu in [0, 1] {
        wait_for_sleep(&setting.machine, cpu)?;
    }
    let remapped = setting.device.counts()?.remapped;
    let counts = setting.end(job.posts..=job.posts + remapped)?.counts;
    expect(
        "it was redirected to both sides",
        counts.set.min(counts.cleared) > job.posts / 100,
    )?;
    expect(
        "some were posted, others not",
        remapped.min(job.posts - remapped) > job.posts / 100,
    )
}

fn disconnect(_: &Env) -> Verdict {
    let mut setting = Setting::start(1, Mode::Halt)?;
    let job = Job { gap: GAP, ..job()? };
    let changes = setting.meanwhile(job, |setting, turn| {
        if turn % 2 == 0 {
            setting.device.disconnect()
        } else {
            setting.device.connect()
        }
    })?;
    println!("# {changes} changes");
    let ended = setting.end(once(job.posts))?;
    let counts = ended.counts;
    expect_eq("connections", counts.set, 1 + changes / 2)?;
    expect(
        "some were posted, others not",
        counts.remapped.min(job.posts - counts.remapped) > job.posts / 100,
    )?;
    if let Some(report) = ended.report {
        expect_eq("first devices", report.bypass, counts.set)?;
    }
    Ok(())
}

fn refused(_: &Env) -> Verdict {
    let mut setting = Setting::disconnected(1, Mode::Halt)?;
    let rounds = settings().rounds.div_ceil(20);
    let job = Job {
        posts: rounds,
        ..job()?
    };
    let refused = setting.device.try_connect(true);
    expect_eq("the IOMMU's answer", refused, Err(Errno::ENOSPC))?;
    setting.post(job)?;
    setting.device.connect()?;
    setting.post(job)?;
    let counts = setting.end(once(2 * rounds))?.counts;
    expect_eq("interrupts to the host", counts.remapped, rounds)?;
    expect_eq(
        "refused and other connections",
        (counts.refused, counts.set),
        (1, 1),
    )
}

fn teardown(_: &Env) -> Verdict {
    let (watch, mut devices) = (Watch::begin()?, Vec::new());
    for round in 0..32 {
        let (device, machine) = (Device::new()?, Machine::start(1)?);
        machine.shared(0).order(Mode::Spin);
        machine.route(&[(VECTOR, Target::Cpu(0))])?;
        machine.attach(0, &device.event)?;
        device.connect()?;
        let mailbox = machine.mailbox(VECTOR);
        let job = Job {
            posts: 1000,
            burst: 0,
            gap: GAP,
            ..job()?
        };
        device.start(mailbox, job)?;
        let seen = machine.wait(0, || Ok(mailbox.seen() > 10))?;
        expect("it interrupts", seen)?;
        let orphan = if round % 2 == 0 {
            machine.end()?;
            drop(machine);
            None
        } else {
            Some(machine.close())
        };
        let counts = device.counts()?;
        expect_eq(
            "a vCPU, and none any more",
            (counts.is_set, counts.set, counts.cleared),
            (0, 1, 1),
        )?;
        if let Some(orphan) = orphan {
            orphan.stop()?;
        }
        device.wait_only()?;
        let counts = device.counts()?;
        expect("the last ones go to the host", counts.remapped > 0)?;
        expect_eq("notifications to nobody", counts.misdirected, 0)?;
        devices.push(device);
    }
    watch.end(&devices.iter().collect::<Vec<_>>())?;
    Ok(())
}

fn reload(_: &Env) -> Verdict {
    for _ in 0..8 {
        provider::reload()?;
        let mut setting = Setting::start(1, Mode::Halt)?;
        let job = Job {
            gap: GAP,
            posts: settings().rounds.div_ceil(20),
            ..job()?
        };
        setting.post(job)?;
        setting.end(once(job.posts))?;
    }
    Ok(())
}

/// A processor that is offline until this is dropped.
struct Offline(usize);

impl Offline {
    fn set(processor: usize, online: &str) -> Verdict {
        let path = format!("/sys/devices/system/cpu/cpu{processor}/online");
        fs::write(&path, online).map_err(|error| missing_or_fail(&path, error))
    }

    fn new(processor: usize) -> Verdict<Self> {
        Self::set(processor, "0")?;
        Ok(Self(processor))
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        // What depends on it notices.
        let _ = Self::set(self.0, "1");
    }
}

fn offline(_: &Env) -> Verdict {
    const ROUNDS: u64 = 10;
    let &[first, .., last] = processors()? else {
        return Err(Stop::skip("a second processor"));
    };
    let mut setting = Setting::start(1, Mode::Halt)?;
    let job = Job {
        posts: 1,
        from: Some(first),
        ..job()?
    };
    for _ in 0..ROUNDS {
        // It is on its way to sleep there after the first.
        move_to(setting.machine.cpus[0].thread, last)?;
        setting.post(job)?;
        wait_for_sleep(&setting.machine, 0)?;
        let _gone = Offline::new(last)?;
        setting.post(job)?;
    }
    let ended = setting.end(once(2 * ROUNDS))?;
    expect_eq("notifications to nobody", ended.counts.misdirected, 0)?;
    if let Some(report) = ended.report {
        expect_eq("woken as their processor went", report.stranded, ROUNDS)?;
    }
    Ok(())
}

fn cost(_: &Env) -> Verdict {
    const ROUNDS: u32 = 10_000;
    let (watch, device) = (Watch::begin()?, Device::new()?);
    let (machine, vcpu) = Machine::idle()?;
    machine.route(&[(VECTOR, Target::Cpu(0))])?;
    machine.attach(0, &device.event)?;
    device.connect()?;
    let costs = device.measure(&vcpu, ROUNDS)?;
    device.disconnect()?;
    let own = costs[0];
    for (name, cost) in COSTS.iter().zip(costs).skip(1) {
        expect(name, cost > own)?;
        let tenths = (cost - own) * 10 / u64::from(ROUNDS);
        println!("# {name}: {}.{}", tenths / 10, tenths % 10);
    }
    if let Some(report) = watch.end(&[&device])? {
        let rounds = u64::from(ROUNDS);
        expect_eq("vCPUs that wait", report.waited, rounds)?;
        expect_eq("vCPUs that are woken", report.woken, rounds)?;
        expect("notifications", report.notifications >= 3 * rounds)?;
    }
    Ok(())
}
