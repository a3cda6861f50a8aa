// SPDX-License-Identifier: GPL-2.0

//! No write is lost: a device writes while a user asks, clears and copies, in every interleaving.
//!
//! The IOMMU has one page table entry for two pages, and an IOTLB that remembers whether it marked
//! the entry. A flush waits for writes under way, as IOMMUs do.

use dirty_log::{
    forget,
    sync,
    sync_runs,
    BitsMut,
    DirtyBits,
    Run, //
};
use loom::{
    model::Builder,
    sync::{
        atomic::{
            AtomicBool,
            AtomicU64,
            Ordering::SeqCst, //
        },
        Arc,
        Mutex, //
    },
    thread, //
};
use std::convert::Infallible;

const PAGES: usize = 2;
const ENTRY: Run = Run {
    first: 0,
    count: PAGES as u64,
};

/// What may be done wrong.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Right,
    /// The IOTLB goes on to believe that the entry is marked.
    NoFlush,
    /// ... or learns of it only after the user has copied.
    LateFlush,
    /// The user copies a page and clears it then.
    CopyFirst,
    /// Of an entry that is cleared only the pages asked for are taken into account.
    RestOfEntryDropped,
    /// Clearing takes a page from the log only, before the IOMMU is asked about it.
    ForgetFirst,
}

struct Machine {
    marked: AtomicBool,
    iotlb_says_marked: Mutex<bool>,
    memory: [AtomicU64; PAGES],
}

impl Machine {
    fn new() -> Self {
        Self {
            marked: AtomicBool::new(false),
            iotlb_says_marked: Mutex::new(false),
            memory: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// A device writes to a page.
    fn write(&self, page: usize, value: u64) {
        let mut says_marked = self.iotlb_says_marked.lock().unwrap();
        if !*says_marked {
            // One access of the bus, as IOMMUs and drivers do it.
            self.marked.fetch_or(true, SeqCst);
            *says_marked = true;
        }
        self.memory[page].store(value, SeqCst);
    }

    fn flush(&self) {
        *self.iotlb_says_marked.lock().unwrap() = false;
    }
}

/// The driver's view of the IOMMU.
struct Iommu<'a>(&'a Machine, Order);

impl DirtyBits for Iommu<'_> {
    type Error = Infallible;

    fn take(&mut self, run: Run, found: &mut dyn FnMut(Run)) -> Result<(), Infallible> {
        if self.0.marked.swap(false, SeqCst) {
            found(match self.1 {
                Order::RestOfEntryDropped => run,
                _ => ENTRY,
            });
        }
        Ok(())
    }
}

/// The user: the log is the kernel's, the image is what was copied.
struct User<'a> {
    machine: &'a Machine,
    order: Order,
    log: [u64; 1],
    image: [u64; PAGES],
}

impl User<'_> {
    fn log(words: &mut [u64; 1]) -> BitsMut<'_> {
        BitsMut::new(words, PAGES as u64).unwrap()
    }

    fn flush(&self) {
        if !matches!(self.order, Order::NoFlush | Order::LateFlush) {
            self.machine.flush();
        }
    }

    fn copy(&mut self, page: usize) {
        self.image[page] = self.machine.memory[page].load(SeqCst);
    }

    /// GET_BITMAP_NOCLEAR
    fn ask(&mut self) -> Vec<usize> {
        let Ok(()) = sync(
            &mut Self::log(&mut self.log),
            &mut Iommu(self.machine, self.order),
        );
        self.flush();
        let log = Self::log(&mut self.log);
        (0..PAGES).filter(|page| log.is_set(*page as u64)).collect()
    }

    /// CLEAR_BITMAP
    fn clear(&mut self, page: usize) {
        let runs = [Run {
            first: page as u64,
            count: 1,
        }];
        let mut log = Self::log(&mut self.log);
        if self.order == Order::ForgetFirst {
            forget(&mut log, runs);
        }
        let Ok(()) = sync_runs(&mut log, &mut Iommu(self.machine, self.order), runs);
        if self.order != Order::ForgetFirst {
            forget(&mut log, runs);
        }
        self.flush();
    }

    /// Brings the copy of a page up to date.
    fn refresh(&mut self, page: usize) {
        if self.order == Order::CopyFirst {
            self.copy(page);
            self.clear(page);
        } else {
            self.clear(page);
            self.copy(page);
        }
        if self.order == Order::LateFlush {
            self.machine.flush();
        }
    }
}

/// Checks, in every interleaving, that the copy is right in the end.
fn explore(order: Order) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let machine = Arc::new(Machine::new());
        let device = thread::spawn({
            let machine = machine.clone();
            move || {
                machine.write(0, 1);
                machine.write(1, 1);
                machine.write(0, 2);
            }
        });

        let mut user = User {
            machine: &machine,
            order,
            log: [0],
            image: [0; PAGES],
        };
        // While the device runs: what is dirty is copied, but only page 0 the first time.
        if user.ask().contains(&0) {
            user.refresh(0);
        }
        for page in user.ask() {
            user.refresh(page);
        }
        device.join().unwrap();
        // When it has stopped.
        for page in user.ask() {
            user.refresh(page);
        }
        for page in 0..PAGES {
            assert_eq!(user.image[page], machine.memory[page].load(SeqCst));
        }
        if order != Order::ForgetFirst {
            assert_eq!(user.ask(), [0; 0], "nothing is dirty any more");
        }
    });
}

#[test]
fn no_write_is_lost() {
    explore(Order::Right);
}

#[test]
fn forgetting_first_reports_a_page_twice_but_loses_none() {
    explore(Order::ForgetFirst);
}

#[test]
#[should_panic]
fn without_a_flush_writes_are_lost() {
    explore(Order::NoFlush);
}

#[test]
#[should_panic]
fn with_a_late_flush_writes_are_lost() {
    explore(Order::LateFlush);
}

#[test]
#[should_panic]
fn copying_before_clearing_loses_writes() {
    explore(Order::CopyFirst);
}

#[test]
#[should_panic]
fn dropping_the_rest_of_an_entry_loses_writes() {
    explore(Order::RestOfEntryDropped);
}
