// SPDX-License-Identifier: GPL-2.0

//! VFIO type1: DMA mappings of user memory through an IOMMU.
//!
//! Takes over the work of the C driver `vfio_iommu_type1` with the same user interface. A user
//! opens a container, adds groups of devices to it and maps memory; every device of the container
//! then sees that memory at the I/O virtual addresses (IOVA) the user chose.
//!
//! - [`container`]: what a container is made of, and its locks.
//! - [`ioctl`]: decodes requests, encodes answers.
//! - [`map`], [`unmap`], [`dirty`]: the requests.
//! - [`attach`]: groups come and go.
//! - [`external`]: pages that mediated device drivers pin, and their access to user memory.
//! - [`report`]: what root sees in debugfs.

#![forbid(unsafe_code)]

use kernel::{
    debugfs,
    prelude::*,
    sync::Arc, //
};
use vfio::Registration;

mod attach;
mod bitmap;
mod container;
mod dirty;
mod external;
mod ioctl;
mod map;
mod mapping;
mod refusal;
mod report;
mod space;
mod topology;
mod unmap;

use container::Container;
use report::{
    Containers,
    Served, //
};

module! {
    type: Type1,
    name: "vfio_type1_rs",
    authors: ["vfio-kvm-rs maintainers"],
    description: "Type1 IOMMU driver for VFIO, in Rust",
    license: "GPL v2",
}

/// The loaded module.
#[pin_data]
struct Type1 {
    // Dropped first: the files read the registration's containers.
    #[pin]
    containers: debugfs::File<Containers>,
    #[pin]
    served: debugfs::File<Served>,
    _dir: debugfs::Dir,
    _registration: Registration<Container>,
}

impl kernel::InPlaceModule for Type1 {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let registration = Registration::new(module)?;
            let registry: Arc<_> = registration.registry().clone();
            let dir = debugfs::Dir::new(c"vfio_type1_rs");

            Ok(try_pin_init!(Self {
                containers <- dir.read_only_file(c"containers", Containers(registry.clone())),
                served <- dir.read_only_file(c"served", Served(registry)),
                _dir: dir,
                _registration: registration,
            }? Error))
        })
    }
}
