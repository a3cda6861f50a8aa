// SPDX-License-Identifier: GPL-2.0

//! Makes each possible fault of one system call happen, one after the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{
    self,
    Write, //
};

use harness::check::{
    expect,
    Stop,
    Verdict, //
};
use harness::env::Env;
use harness::soft;
use nix::errno::Errno;

use crate::call::Call;
use crate::inject::{
    Faults,
    Injector,
    Mode, //
};
use crate::rig::{
    Ground,
    Rig,
    View, //
};
use crate::slab;

/// More places than any call has: a sweep that comes here does not end.
const ENDLESS: u32 = 100_000;

/// How many calls in a row must meet no fault for the sweep to be over: how often the kernel
/// allocates depends on what its caches hold.
const QUIET: u32 = 3;

/// How often a sweep is made for an errno that is not seen: an allocation that only one call makes, for
/// a cache that is empty just then, meets the fault that was for what comes after it.
const SWEEPS: u32 = 3;

/// A call that is about to be made, and what it is made on.
pub(crate) struct Trial {
    /// The call.
    pub(crate) call: Call,
    /// The container it is about.
    pub(crate) rig: Rig,
}

/// What a refused call may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Nothing or all: the answer may have been lost.
    Lost,
    /// The same where it cannot be seen from outside, but has the call refused with this errno
    /// when it is made again.
    Hidden(Errno),
    /// Some of so many equal steps, maybe all.
    Steps(u32),
}

type Prepare<'a> = dyn Fn() -> Verdict<Trial> + 'a;
type Verify<'a> = dyn Fn(&mut Trial, i64) -> Verdict + 'a;

/// Everything about a sweep.
pub(crate) struct Sweep<'a> {
    env: &'a Env,
    prepare: Box<Prepare<'a>>,
    verify: Box<Verify<'a>>,
    errnos: Vec<Errno>,
    effect: Effect,
    ranges_may_stay: bool,
    domains_may_differ: bool,
    holes_may_hide: bool,
    cheap: bool,
    modes: &'static [Mode],
}

/// What the calls of a sweep ended with.
#[derive(Default)]
struct Tally {
    faults: Faults,
    calls: u32,
    ends: BTreeMap<String, u32>,
    errnos: Vec<Errno>,
    /// Places where the call was refused and did nothing.
    refused: Vec<u32>,
}

impl<'a> Sweep<'a> {
    /// A sweep over the call that `prepare` makes ready, on fresh ground each time.
    ///
    /// It may refuse with ENOMEM, and with EFAULT where it copies.
    pub(crate) fn new(env: &'a Env, prepare: impl Fn() -> Verdict<Trial> + 'a) -> Self {
        Sweep {
            env,
            prepare: Box::new(prepare),
            verify: Box::new(|_, _| Ok(())),
            errnos: vec![Errno::ENOMEM, Errno::EFAULT],
            effect: Effect::None,
            ranges_may_stay: false,
            domains_may_differ: false,
            holes_may_hide: false,
            cheap: false,
            modes: &Mode::BOTH,
        }
    }

    /// Looks closer at what a call did that reported success.
    pub(crate) fn verify(mut self, verify: impl Fn(&mut Trial, i64) -> Verdict + 'a) -> Self {
        self.verify = Box::new(verify);
        self
    }

    /// With which errnos the call is refused; all of them have to be seen.
    pub(crate) fn errnos(mut self, errnos: &[Errno]) -> Self {
        self.errnos = errnos.to_vec();
        self
    }

    /// What a call may have done that was refused.
    pub(crate) fn effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    /// The call may leave IOVA ranges as small as they were: to find out that more can be allowed
    /// takes memory.
    pub(crate) fn ranges_may_stay(mut self) -> Self {
        self.ranges_may_stay = true;
        self
    }

    /// A group for which there is a domain may get one of its own, if it cannot be attached there.
    pub(crate) fn domains_may_differ(mut self) -> Self {
        self.domains_may_differ = true;
        self
    }

    /// A driver of an IOMMU that has no memory for its list of reserved regions, like Intel's, leaves
    /// out what it has no memory for, and cannot say so: no VFIO driver can know.
    pub(crate) fn holes_may_hide(mut self) -> Self {
        self.holes_may_hide = true;
        self
    }

    /// If the call is cheap it is made thousands of times where it is refused, to see whether
    /// memory leaks that nothing counts.
    pub(crate) fn cheap(mut self, cheap: bool) -> Self {
        self.cheap = cheap;
        self
    }

    /// Faults come one at a time: what follows a refused call is not to meet them. Or the call makes a
    /// process, which inherits `make-it-fail`, and what that meets cannot be told from the rest.
    pub(crate) fn one_at_a_time(mut self) -> Self {
        self.modes = &[Mode::Single];
        self
    }

    /// Sweeps, and prints what was met.
    #[track_caller]
    pub(crate) fn run(self) -> Verdict {
        let injector = Injector::new()?;
        // The first rounds warm the kernel's caches and this process's memory up.
        let mut reference = self.reference()?;
        for _ in 0..2 {
            reference = self.reference()?;
        }

        let mut seen = Vec::new();
        for &mode in self.modes {
            let mut tally = self.sweep(&injector, mode, &reference)?;
            seen.append(&mut tally.errnos);
            if self.cheap && mode == Mode::Single {
                if slab::tells() {
                    self.repeat(&injector, &tally.refused)?;
                } else {
                    println!("# refused once at each place: this kernel watches itself");
                }
            }
        }
        for errno in &self.errnos {
            for _ in 1..SWEEPS {
                if !seen.contains(errno) {
                    let mut tally = self.sweep(&injector, Mode::Single, &reference)?;
                    seen.append(&mut tally.errnos);
                }
            }
            expect(
                format_args!("some call was refused with {errno:?}"),
                seen.contains(errno),
            )?;
        }
        Ok(())
    }

    /// Has each place fail, until no call comes to the next ones.
    fn sweep(
        &self,
        injector: &Injector,
        mode: Mode,
        reference: &(Ground, View, View),
    ) -> Verdict<Tally> {
        let mut tally = Tally::default();
        let mut quiet = 0;
        let mut nth = 0;
        while quiet < QUIET {
            nth += 1;
            expect("the sweep ends", nth < ENDLESS)?;
            let met = self
                .shot(injector, mode, nth, reference, &mut tally)
                .map_err(|stop| match stop {
                    Stop::Fail(why) => Stop::Fail(format!("{mode}, place {nth}: {why}")),
                    skip => skip,
                })?;
            quiet = if met { 0 } else { quiet + 1 };
        }
        tally.print(mode);
        expect(format_args!("{mode}: any fault was met"), tally.calls > 0)?;
        Ok(tally)
    }

    /// What it looks like before and after the call without a fault.
    fn reference(&self) -> Verdict<(Ground, View, View)> {
        let ground = Ground::now()?;
        let mut trial = (self.prepare)()?;
        let before = trial.rig.view(self.env)?;
        let after = self.again(&mut trial)?;
        drop(trial);
        same("without a fault, at the end", &ground, Ground::now)?;
        Ok((ground, before, after))
    }

    /// Makes the call, which has to succeed.
    fn again(&self, trial: &mut Trial) -> Verdict<View> {
        let value = Errno::result(trial.call.issue())
            .map_err(|errno| Stop::fail(format_args!("without a fault, refused with {errno:?}")))?;
        (self.verify)(trial, value)?;
        trial.rig.view(self.env)
    }

    /// One call with a fault. Whether it met one.
    fn shot(
        &self,
        injector: &Injector,
        mode: Mode,
        nth: u32,
        (ground, before, after): &(Ground, View, View),
        tally: &mut Tally,
    ) -> Verdict<bool> {
        let mut trial = (self.prepare)()?;
        let view = || trial.rig.view(self.env);
        same("before the call", before, view)?;

        let call = &mut trial.call;
        let (result, faults) = injector.strike(mode, nth, || call.issue())?;
        match result {
            Ok(value) => {
                (self.verify)(&mut trial, value)?;
                let view = || {
                    let mut now = trial.rig.view(self.env)?;
                    if self.ranges_may_stay && faults.any() {
                        now = now.with_ranges_of(before, after);
                    }
                    if self.domains_may_differ && faults.any() {
                        now = now.with_domains_of(after);
                    }
                    if self.holes_may_hide && faults.any() {
                        now = now.with_holes_of(after);
                    }
                    Ok(now)
                };
                same("after a call that reported success", after, view)?;
            }
            Err(errno) => {
                expect(format_args!("{errno:?} without a fault"), faults.any())?;
                expect(
                    format_args!("{errno:?} is one of {:?} ({faults:?})", self.errnos),
                    self.errnos.contains(&errno),
                )?;
                if !self.is_complete(&mut trial, errno, before, after)? {
                    let now = self.again(&mut trial)?;
                    same("after the call was made again", after, || Ok(now.clone()))?;
                }
            }
        }
        drop(trial);
        same("at the end", ground, Ground::now)?;
        tables_are_gone()?;

        if faults.any() {
            if result == Err(Errno::ENOMEM) {
                tally.refused.push(nth);
            }
            tally.add(result, faults);
        }
        Ok(faults.any())
    }

    /// Has the call refused at each of `places` again and again; fails if a slab cache grows by it.
    fn repeat(&self, injector: &Injector, places: &[u32]) -> Verdict {
        // What the kernel keeps for each CPU looks like objects in use, too: hundreds of them.
        const TIMES: u64 = 2000;
        let mut repeated = 0;
        for &nth in places {
            let mut trial = Some((self.prepare)()?);
            let mut successes = 0;
            let mut refuse = |times| -> Verdict<bool> {
                for _ in 0..times {
                    let Some(ready) = &mut trial else {
                        return Ok(false);
                    };
                    let call = &mut ready.call;
                    let Ok(value) = injector.strike_again(nth, || call.issue())? else {
                        continue;
                    };
                    // A cache needed a page, and only that failed; or the call needs less than the
                    // first time, and never fails here.
                    (self.verify)(ready, value)?;
                    successes += 1;
                    // A group can be open only once.
                    trial = None;
                    if successes < TIMES / 10 {
                        trial = Some((self.prepare)()?);
                    }
                }
                Ok(true)
            };
            if !refuse(TIMES / 4)? {
                continue;
            }
            let before = slab::objects()?;
            if !refuse(TIMES)? {
                continue;
            }
            slab::settled(&before, TIMES / 4 * 3)
                .map_err(|why| Stop::fail(format_args!("refused {TIMES} times at {nth}: {why}")))?;
            repeated += 1;
        }
        println!("# refused {TIMES} times at each of {repeated} places");
        Ok(())
    }

    /// Whether a refused call has done all it should; fails if it has done what it should not.
    fn is_complete(
        &self,
        trial: &mut Trial,
        errno: Errno,
        before: &View,
        after: &View,
    ) -> Verdict<bool> {
        let now = trial.rig.view(self.env)?;
        if let (Effect::Hidden(refusal), Errno::EFAULT) = (self.effect, errno) {
            // Made again it changes nothing, or all.
            let again = Errno::result(trial.call.issue()).map(drop);
            expect(
                format_args!("{again:?} is success or {refusal:?}"),
                again.is_ok() || again == Err(refusal),
            )?;
            same("after the call was made again", after, || {
                trial.rig.view(self.env)
            })?;
            return Ok(true);
        }
        if now == *before {
            return Ok(false);
        }
        match self.effect {
            Effect::None | Effect::Hidden(_) => {}
            Effect::Lost if now == *after => return Ok(true),
            Effect::Lost => {}
            Effect::Steps(all) => {
                let done = (1..=all).find(|&done| now.is_between(before, after, done, all));
                if let Some(done) = done {
                    return Ok(done == all);
                }
            }
        }
        let what = format!("after {errno:?}");
        same(&what, before, || trial.rig.view(self.env))?;
        Ok(false)
    }
}

impl Tally {
    fn add(&mut self, result: Result<i64, Errno>, faults: Faults) {
        self.calls += 1;
        self.faults += faults;
        let end = match result {
            Ok(_) => "success".to_owned(),
            Err(errno) => {
                if !self.errnos.contains(&errno) {
                    self.errnos.push(errno);
                }
                format!("{errno:?}")
            }
        };
        *self.ends.entry(end).or_default() += 1;
    }

    fn print(&self, mode: Mode) {
        let ends: Vec<String> = self
            .ends
            .iter()
            .map(|(end, n)| format!("{end} {n}"))
            .collect();
        let Faults { slab, page, copy } = self.faults;
        println!(
            "# {mode}: {} calls met {slab} slab, {page} page, {copy} copy faults: {}",
            self.calls,
            ends.join(", "),
        );
        let _ = io::stdout().flush();
    }
}

/// Fails if a page table of a software IOMMU is left when all is closed.
fn tables_are_gone() -> Verdict {
    if fs::exists(soft::UNITS)? {
        same("at the end, domains and tables", &(0, 0), soft::alive)?;
    }
    Ok(())
}

/// Fails unless something looks as it should. Others on the machine pin pages and free memory
/// too, for a moment, so a difference only counts if it stays.
#[track_caller]
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(
    when: &str,
    want: &T,
    look: impl Fn() -> Verdict<T>,
) -> Verdict {
    const TRIES: u32 = 200;
    for _ in 0..TRIES {
        if look()? == *want {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Err(Stop::fail(format_args!(
        "{when}: expected {want:#?}, got {:#?}",
        look()?
    )))
}
