// SPDX-License-Identifier: GPL-2.0

//! Memory of every kind a process can map for DMA.
//!
//! A device may write to it at any time, so it is only ever reached through raw pointers.

use std::fs::{
    self,
    File, //
};
use std::io;
use std::os::fd::{
    AsRawFd,
    FromRawFd,
    RawFd, //
};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr;

use nix::errno::Errno;

use crate::check::{
    read_needed,
    Stop,
    Verdict, //
};
use crate::vfio::{
    Device,
    Region,
    PAGE, //
};

/// A mebibyte.
pub const MIB: u64 = 1 << 20;
/// A gibibyte.
pub const GIB: u64 = 1 << 30;

/// An integer: whatever bytes lie in memory, they are a value of it.
///
/// # Safety
///
/// All bit patterns are valid.
pub unsafe trait Integer: Copy {}
// SAFETY: It is a plain integer.
unsafe impl Integer for u8 {}
// SAFETY: It is a plain integer.
unsafe impl Integer for u32 {}
// SAFETY: It is a plain integer.
unsafe impl Integer for u64 {}

const PROT_RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A mapping of this process, unmapped when dropped.
#[derive(Debug)]
pub struct Memory {
    start: *mut u8,
    len: u64,
}

// SAFETY: A mapping belongs to the process, not to a thread, and no reference to its contents is
// ever made.
unsafe impl Send for Memory {}
// SAFETY: As above; all accesses are volatile.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps, as mmap does.
    #[track_caller]
    fn map(
        hint: *mut u8,
        len: u64,
        prot: i32,
        flags: i32,
        fd: RawFd,
        offset: u64,
    ) -> Verdict<Self> {
        let bytes = usize::try_from(len).map_err(Stop::fail)?;
        let offset = libc::off_t::try_from(offset).map_err(Stop::fail)?;
        // SAFETY: With MAP_FIXED the caller owns what is there; otherwise the kernel picks a
        // place where nothing is.
        let start = unsafe { libc::mmap(hint.cast(), bytes, prot, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(Stop::fail(format_args!(
                "mmap of {len:#x} bytes, flags {flags:#x}: {}",
                Errno::last()
            )));
        }
        Ok(Memory {
            start: start.cast(),
            len,
        })
    }

    /// Reserves address space at a multiple of `align`, without access.
    #[track_caller]
    fn reserve(len: u64, align: u64) -> Verdict<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mut all = Memory::map(ptr::null_mut(), len + align, libc::PROT_NONE, flags, -1, 0)?;

        let head = all.vaddr().next_multiple_of(align) - all.vaddr();
        let mut kept = all.split_off(head);
        drop(kept.split_off(len));
        Ok(kept)
    }

    /// Cuts the mapping in two and returns the second part.
    fn split_off(&mut self, at: u64) -> Memory {
        let tail = Memory {
            start: self.start.wrapping_add(at as usize),
            len: self.len - at,
        };
        self.len = at;
        tail
    }

    /// Fills reserved address space with a mapping of `fd`, or anonymous memory if that is -1.
    #[track_caller]
    fn place(self, prot: i32, flags: i32, fd: RawFd, offset: u64) -> Verdict<Self> {
        let placed = Memory::map(
            self.start,
            self.len,
            prot,
            flags | libc::MAP_FIXED,
            fd,
            offset,
        )?;
        std::mem::forget(self);
        Ok(placed)
    }

    /// Private anonymous memory in base pages, populated.
    #[track_caller]
    pub fn anon(len: u64) -> Verdict<Self> {
        let memory = Memory::unpopulated(len)?;
        memory.keep_small()?;
        memory.fill(0x5a);
        Ok(memory)
    }

    /// Private anonymous memory nobody has touched, at a multiple of 2 MiB.
    #[track_caller]
    pub fn unpopulated(len: u64) -> Verdict<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Memory::reserve(len, 2 * MIB)?.place(PROT_RW, flags, -1, 0)
    }

    /// Transparent huge pages.
    #[track_caller]
    pub fn thp(len: u64) -> Verdict<Self> {
        let control = PathBuf::from("/sys/kernel/mm/transparent_hugepage/enabled");
        if read_needed(&control)?.contains("[never]") {
            return Err(Stop::skip(format_args!("{}: never", control.display())));
        }
        let memory = Memory::unpopulated(len)?;
        memory.advise(libc::MADV_HUGEPAGE)?;
        memory.fill(0x5a);

        let huge = memory.smaps("AnonHugePages:")? * 1024;
        if huge < len {
            return Err(Stop::fail(format_args!(
                "transparent huge pages: expected {len:#x} bytes, got {huge:#x}"
            )));
        }
        Ok(memory)
    }

    /// Reserved huge pages of `page` bytes.
    #[track_caller]
    pub fn hugetlb(len: u64, page: u64) -> Verdict<Self> {
        let kib = page / 1024;
        let free = PathBuf::from(format!(
            "/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages"
        ));
        let count: u64 = read_needed(&free)?.trim().parse().map_err(Stop::fail)?;
        if count < len / page {
            return Err(Stop::skip(format_args!(
                "{}: {count}, {} needed",
                free.display(),
                len / page
            )));
        }

        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_HUGETLB
            | ((page.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT);
        let memory = Memory::map(ptr::null_mut(), len, PROT_RW, flags, -1, 0)?;
        for offset in (0..len).step_by(page as usize) {
            memory.write(offset, 0x5au8);
        }
        Ok(memory)
    }

    /// A new memfd of `len` bytes.
    #[track_caller]
    pub fn memfd(len: u64) -> Verdict<File> {
        // SAFETY: The name is a string that ends with a zero.
        let fd = unsafe { libc::memfd_create(c"type1".as_ptr(), libc::MFD_CLOEXEC) };
        let fd = Errno::result(fd)?;
        // SAFETY: The kernel has just opened it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len)?;
        Ok(file)
    }

    /// A shared mapping of a whole file.
    #[track_caller]
    pub fn shared(file: &File) -> Verdict<Self> {
        let memory = Memory::reserve(file.metadata()?.len(), 2 * MIB)?.place(
            PROT_RW,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )?;
        memory.fill(0x5a);
        Ok(memory)
    }

    /// Shared memory of which no two neighbours were allocated one after the other, in either
    /// direction: hardly any frames are consecutive.
    #[track_caller]
    pub fn scattered(len: u64) -> Verdict<Self> {
        const STRIDE: u64 = 7;
        let pages = len / PAGE;
        assert!(pages % STRIDE != 0, "each page has to come once");
        let file = Memory::memfd(len)?;
        for offset in (0..len).step_by(PAGE as usize) {
            file.write_all_at(&[0x5a; PAGE as usize], offset)?;
        }
        let mut rest = Memory::reserve(len, 2 * MIB)?;
        let start = rest.start;
        for page in 0..pages {
            let tail = rest.split_off(PAGE);
            let offset = page * STRIDE % pages * PAGE;
            rest.place(PROT_RW, libc::MAP_SHARED, file.as_raw_fd(), offset)
                .map(std::mem::forget)?;
            rest = tail;
        }
        Ok(Memory { start, len })
    }

    /// A private, read-only mapping of the first `len` bytes of a file.
    #[track_caller]
    pub fn private_file(file: &File, len: u64) -> Verdict<Self> {
        Memory::reserve(len, PAGE)?.place(libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
    }

    /// A device region.
    #[track_caller]
    pub fn region(device: &Device, region: Region) -> Verdict<Self> {
        Memory::reserve(region.size, 2 * MIB)?.place(
            PROT_RW,
            libc::MAP_SHARED,
            device.file().as_raw_fd(),
            region.offset,
        )
    }

    /// `before` bytes of anonymous memory with a device region right behind them.
    #[track_caller]
    pub fn anon_then_region(before: u64, device: &Device, region: Region) -> Verdict<(Self, Self)> {
        let mut head = Memory::reserve(before + region.size, 2 * MIB)?;
        let tail = head.split_off(before);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let head = head.place(PROT_RW, flags, -1, 0)?;
        head.keep_small()?;
        head.fill(0x5a);
        let fd = device.file().as_raw_fd();
        let tail = tail.place(PROT_RW, libc::MAP_SHARED, fd, region.offset)?;
        Ok((head, tail))
    }

    /// A part of a device region, `len` bytes from `offset` on, at an address that is `skew` above
    /// a multiple of `align`.
    #[track_caller]
    pub fn region_part(
        device: &Device,
        region: Region,
        (offset, len): (u64, u64),
        (align, skew): (u64, u64),
    ) -> Verdict<Self> {
        assert!(offset + len <= region.size);
        Memory::file_part(device.file(), (region.offset + offset, len), (align, skew))
    }

    /// A part of a file, shared, `len` bytes from `offset` on, at an address that is `skew` above a
    /// multiple of `align`.
    #[track_caller]
    pub fn file_part(
        file: &File,
        (offset, len): (u64, u64),
        (align, skew): (u64, u64),
    ) -> Verdict<Self> {
        let mut head = Memory::reserve(skew + len, align)?;
        head.split_off(skew)
            .place(PROT_RW, libc::MAP_SHARED, file.as_raw_fd(), offset)
    }

    /// Takes a part away: nothing is there then, until [`Memory::put_region`].
    #[track_caller]
    pub fn take_away(&self, offset: u64, len: u64) -> Verdict {
        let start = self.at(offset, len);
        // SAFETY: The range is within this mapping, whose contents no reference points to.
        Errno::result(unsafe { libc::munmap(start.cast(), len as usize) })?;
        Ok(())
    }

    /// Puts a part of a device region in the place of a part of this mapping.
    #[track_caller]
    pub fn put_region(
        &self,
        offset: u64,
        len: u64,
        device: &Device,
        region: Region,
        from: u64,
    ) -> Verdict {
        assert!(from + len <= region.size);
        self.put_file(offset, len, device.file(), region.offset + from)
    }

    /// Puts a part of a file, shared, in the place of a part of this mapping.
    #[track_caller]
    pub fn put_file(&self, offset: u64, len: u64, file: &File, from: u64) -> Verdict {
        let start = self.at(offset, len);
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let placed = Memory::map(start, len, PROT_RW, flags, file.as_raw_fd(), from)?;
        // It is a part of this mapping, and goes with it.
        std::mem::forget(placed);
        Ok(())
    }

    /// Where it begins in this process.
    pub fn vaddr(&self) -> u64 {
        self.start.expose_provenance() as u64
    }

    /// Its bytes.
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty mapping cannot be made"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Changes the protection of a part.
    #[track_caller]
    pub fn protect(&self, offset: u64, len: u64, prot: i32) -> Verdict {
        let start = self.at(offset, len);
        // SAFETY: The range is within this mapping, whose contents no reference points to.
        Errno::result(unsafe { libc::mprotect(start.cast(), len as usize, prot) })?;
        Ok(())
    }

    /// Removes the end of the mapping.
    pub fn truncate(&mut self, len: u64) {
        drop(self.split_off(len));
    }

    /// Keeps transparent huge pages away.
    fn keep_small(&self) -> Result<(), Errno> {
        match self.advise(libc::MADV_NOHUGEPAGE) {
            // A kernel without them has no use for the advice.
            Err(Errno::EINVAL) => Ok(()),
            other => other,
        }
    }

    fn advise(&self, advice: i32) -> Result<(), Errno> {
        // SAFETY: None of the advice given here changes contents.
        Errno::result(unsafe { libc::madvise(self.start.cast(), self.len as usize, advice) })
            .map(drop)
    }

    /// Gives the pages of a part back to the kernel: what is read there next are zeroes, and
    /// nothing is there to be read before.
    #[track_caller]
    pub fn forget(&self, offset: u64, len: u64) -> Verdict {
        let start = self.at(offset, len);
        // Removes the pages of a file, and is refused where there is none.
        for advice in [libc::MADV_REMOVE, libc::MADV_DONTNEED] {
            // SAFETY: The range is within this mapping, whose contents no reference points to.
            let done = unsafe { libc::madvise(start.cast(), len as usize, advice) };
            if done == 0 {
                return Ok(());
            }
        }
        Err(Errno::last().into())
    }

    /// Checks a range and returns its address.
    fn at(&self, offset: u64, len: u64) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        self.start.wrapping_add(offset as usize)
    }

    /// Writes one value, which may be a device register.
    pub fn write<T: Integer>(&self, offset: u64, value: T) {
        let at = self.at(offset, size_of::<T>() as u64).cast::<T>();
        assert!(at.is_aligned());
        // SAFETY: The range is within this mapping and aligned.
        unsafe { at.write_volatile(value) };
    }

    /// Reads one value, which may be a device register.
    pub fn read<T: Integer>(&self, offset: u64) -> T {
        let at = self.at(offset, size_of::<T>() as u64).cast::<T>();
        assert!(at.is_aligned());
        // SAFETY: As in `write`; any bytes are a value of an integer.
        unsafe { at.read_volatile() }
    }

    /// Writes `byte` everywhere.
    pub fn fill(&self, byte: u8) {
        // SAFETY: The range is this mapping.
        unsafe { ptr::write_bytes(self.start, byte, self.len as usize) };
    }

    /// Copies bytes in.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len() as u64);
        // SAFETY: The range is within this mapping, which no slice overlaps.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies bytes out.
    pub fn get(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.get_into(offset, &mut bytes);
        bytes
    }

    /// Copies bytes out, to where they are wanted.
    pub fn get_into(&self, offset: u64, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len() as u64);
        // SAFETY: As in `put`.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// A number of kibibytes from smaps, summed over the parts of this mapping.
    fn smaps(&self, key: &str) -> io::Result<u64> {
        let text = fs::read_to_string("/proc/self/smaps")?;
        let mut inside = false;
        let mut sum = 0;

        for line in text.lines() {
            let range = line
                .split_once(' ')
                .and_then(|(range, _)| range.split_once('-'));
            if let Some((start, end)) = range {
                let hex = |text| u64::from_str_radix(text, 16);
                if let (Ok(start), Ok(end)) = (hex(start), hex(end)) {
                    inside = start >= self.vaddr() && end <= self.vaddr() + self.len;
                    continue;
                }
            }
            if let Some(rest) = line.strip_prefix(key).filter(|_| inside) {
                let kib = rest
                    .split_whitespace()
                    .next()
                    .and_then(|kib| kib.parse::<u64>().ok());
                sum += kib.unwrap_or(0);
            }
        }
        Ok(sum)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: The range is this mapping, and nothing refers to it any more.
            unsafe { libc::munmap(self.start.cast(), self.len as usize) };
        }
    }
}
