// SPDX-License-Identifier: GPL-2.0

//! What KVM counts for a virtual CPU, by the names KVM gives it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{
    AsRawFd,
    FromRawFd, //
};
use std::os::unix::fs::FileExt;

use harness::check::{
    Stop,
    Verdict, //
};
use kvm_ioctls::VcpuFd;
use nix::ioctl_none;

ioctl_none!(kvm_get_stats_fd, 0xAE, 0xCE);

/// A file of 64-bit numbers, and where each is.
pub(crate) struct Stats {
    file: File,
    offsets: HashMap<String, u64>,
}

impl Stats {
    pub(crate) fn of(vcpu: &VcpuFd) -> Verdict<Self> {
        // SAFETY: The call takes nothing, and returns a new descriptor.
        let fd = unsafe { kvm_get_stats_fd(vcpu.as_raw_fd()) }?;
        // SAFETY: Nobody else knows it.
        let file = unsafe { File::from_raw_fd(fd) };

        // struct kvm_stats_header, then a struct kvm_stats_desc for each, with the name behind.
        let word = |at| read_at(&file, at).map(u32::from_le_bytes).map(u64::from);
        let (name_size, count) = (word(4)?, word(8)?);
        let (descriptors, data) = (word(16)?, word(20)?);
        let mut offsets = HashMap::new();
        for index in 0..count {
            let at = descriptors + index * (16 + name_size);
            let mut name = vec![0; name_size as usize];
            file.read_exact_at(&mut name, at + 16)?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            offsets.insert(name, data + word(at + 8)?);
        }
        Ok(Self { file, offsets })
    }

    /// The first, for a statistic that has several.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> Verdict<u64> {
        let offset = self
            .offsets
            .get(name)
            .ok_or_else(|| Stop::fail(format_args!("KVM has no statistic {name}")))?;
        Ok(u64::from_le_bytes(read_at(&self.file, *offset)?))
    }
}

fn read_at<const N: usize>(file: &File, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}
