// SPDX-License-Identifier: GPL-2.0

//! The interfaces through which the kernel tells which pages are dirty.

use std::collections::BTreeSet;

use harness::check::{
    Stop,
    Sys,
    Verdict, //
};
use harness::edu::Engine;
use harness::env::{
    Env,
    Model, //
};
use harness::iommufd::{
    self,
    Id,
    NO_CLEAR, //
};
use harness::vfio::{
    Container,
    Device,
    Group,
    DIRTY_GET,
    DIRTY_GET_NOCLEAR,
    DIRTY_START,
    DIRTY_STOP,
    PAGE,
    RW, //
};
use nix::errno::Errno;

/// The pages whose bits are set in a bitmap.
pub(crate) fn pages_of(words: &[u64]) -> Pages {
    let set = |n: &u64| words[(n / 64) as usize] >> (n % 64) & 1 == 1;
    (0..words.len() as u64 * 64).filter(set).collect()
}

/// Numbers of pages, counted from the start of a range.
pub(crate) type Pages = BTreeSet<u64>;

/// An edu device in an address space whose dirty pages are tracked.
pub(crate) trait Log: Sized {
    /// Opens the device; nothing is mapped, and nothing tracked.
    fn open(env: &Env) -> Verdict<(Self, Engine)>;

    /// Maps memory of this process, to be read and written.
    fn map(&self, iova: u64, vaddr: u64, len: u64) -> Sys;

    /// Unmaps whole mappings.
    fn unmap(&self, iova: u64, len: u64) -> Sys;

    /// Begins with everything clean.
    fn start(&self) -> Sys;

    /// Ends; what was written since the last look is forgotten.
    fn stop(&self) -> Sys;

    /// Gets the bitmap of a range into `words`, and leaves the pages in it as they are or clean.
    ///
    /// The range is of whole mappings and of whole words.
    fn bitmap(&self, iova: u64, words: &mut [u64], clean: bool) -> Sys;

    /// The bitmap of a range.
    fn words(&self, iova: u64, len: u64, clean: bool) -> Sys<Vec<u64>> {
        let mut words = vec![0; (len / PAGE / 64) as usize];
        self.bitmap(iova, &mut words, clean)?;
        Ok(words)
    }

    /// The dirty pages of a range.
    fn pages(&self, iova: u64, len: u64, clean: bool) -> Sys<Pages> {
        Ok(pages_of(&self.words(iova, len, clean)?))
    }
}

/// A page table of iommufd.
pub(crate) struct Iommufd {
    iommufd: iommufd::Iommufd,
    ioas: Id,
    table: Id,
}

/// The skip of machines whose IOMMU cannot track.
fn no_bits() -> Stop {
    Stop::skip("an IOMMU that sets dirty bits")
}

impl Log for Iommufd {
    #[track_caller]
    fn open(env: &Env) -> Verdict<(Self, Engine)> {
        let device = Device::open(&env.edu()?.node()?)?;
        let iommufd = iommufd::Iommufd::open()?;
        let id = iommufd.bind(&device)?;
        let ioas = iommufd.ioas()?;
        let table = match iommufd.tracking_table(id, ioas) {
            Err(error) if error.errno == Errno::EOPNOTSUPP => return Err(no_bits()),
            table => table?,
        };
        iommufd::attach(&device, table)?;
        let log = Iommufd {
            iommufd,
            ioas,
            table,
        };
        Ok((log, Engine::open(device)?))
    }

    fn map(&self, iova: u64, vaddr: u64, len: u64) -> Sys {
        self.iommufd.map(self.ioas, iova, vaddr, len)
    }

    fn unmap(&self, iova: u64, len: u64) -> Sys {
        self.iommufd.unmap(self.ioas, iova, len)
    }

    fn start(&self) -> Sys {
        self.iommufd.track(self.table, true)
    }

    fn stop(&self) -> Sys {
        self.iommufd.track(self.table, false)
    }

    fn bitmap(&self, iova: u64, words: &mut [u64], clean: bool) -> Sys {
        let flags = if clean { 0 } else { NO_CLEAR };
        self.iommufd.dirty(self.table, flags, iova, PAGE, words)
    }
}

/// A container of VFIO type1.
pub(crate) struct Type1 {
    // Closed before the container is.
    _group: Group,
    pub(crate) container: Container,
}

impl Log for Type1 {
    #[track_caller]
    fn open(env: &Env) -> Verdict<(Self, Engine)> {
        let session = env.open_with(env.edu()?, Model::V2)?;
        let engine = Engine::open(session.device()?)?;
        let log = Type1 {
            _group: session.group,
            container: session.container,
        };
        Ok((log, engine))
    }

    fn map(&self, iova: u64, vaddr: u64, len: u64) -> Sys {
        self.container.map(iova, vaddr, len, RW)
    }

    fn unmap(&self, iova: u64, len: u64) -> Sys {
        self.container.unmap(iova, len, 0).map(drop)
    }

    fn start(&self) -> Sys {
        self.container.dirty(DIRTY_START)
    }

    fn stop(&self) -> Sys {
        self.container.dirty(DIRTY_STOP)
    }

    fn bitmap(&self, iova: u64, words: &mut [u64], clean: bool) -> Sys {
        let flags = if clean { DIRTY_GET } else { DIRTY_GET_NOCLEAR };
        let size = words.len() as u64 * 64 * PAGE;
        self.container.dirty_range(flags, iova, size, words)
    }
}
