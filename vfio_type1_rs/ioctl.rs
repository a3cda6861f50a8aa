// SPDX-License-Identifier: GPL-2.0

//! The user interface: decodes arguments, calls, encodes answers.

use crate::{
    container::Container,
    refusal::Cause, //
};
use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use vfio_uapi::{
    caps_len,
    extension,
    ioctl,
    write_caps,
    BitmapArg,
    CapsInput,
    DirtyOp,
    DirtyRange,
    InfoHeader,
    InfoReply,
    MapRequest,
    UnmapHeader, //
};

/// `VFIO_CHECK_EXTENSION`; `container` is there after `VFIO_SET_IOMMU`.
pub(crate) fn check_extension(container: Option<&Container>, number: u64) -> isize {
    let supported = match (number, container) {
        (extension::TYPE1 | extension::TYPE1V2 | extension::UNMAP_ALL, _) => true,
        // It is the container that keeps the log, whatever its IOMMUs can do.
        (extension::DIRTY_LOG_MANUAL_CLEAR, container) => container.is_some(),
        // A mediated device could not pin pages while user addresses change.
        (extension::UPDATE_VADDR, Some(container)) => !container.topology.read().has_emulated(),
        (extension::DMA_CC, Some(container)) => {
            let topology = container.topology.read();
            let coherent = topology.iommu.domains().all(|domain| domain.is_coherent());
            coherent
        }
        _ => false,
    };
    supported.into()
}

/// Any other ioctl.
pub(crate) fn dispatch(container: &Container, cmd: u32, arg: usize) -> Result<isize> {
    let (request, result) = match cmd {
        ioctl::GET_INFO => ("VFIO_IOMMU_GET_INFO", get_info(container, arg)),
        ioctl::MAP_DMA => ("VFIO_IOMMU_MAP_DMA", map_dma(container, arg)),
        ioctl::UNMAP_DMA => ("VFIO_IOMMU_UNMAP_DMA", unmap_dma(container, arg)),
        ioctl::DIRTY_PAGES => ("VFIO_IOMMU_DIRTY_PAGES", dirty_pages(container, arg)),
        _ => return Err(ENOTTY),
    };
    match result {
        Ok(()) => Ok(0),
        Err(cause) => {
            cause.log(request);
            Err(cause.errno())
        }
    }
}

fn get_info(container: &Container, arg: usize) -> Result<(), Cause> {
    let header = InfoHeader::decode(&copy_in(arg, 0)?)?;
    let (reply, caps) = describe(container, &header)?;
    if reply.copy_caps {
        copy_out(arg, InfoHeader::SIZE, &caps)?;
    }
    copy_out(arg, 0, reply.head())
}

/// The answer to `VFIO_IOMMU_GET_INFO`: the structure and the chain of capabilities behind it.
fn describe(container: &Container, header: &InfoHeader) -> Result<(InfoReply, KVec<u8>), Cause> {
    let topology = container.topology.read();
    let sizes = topology.page_sizes();
    let valid = topology.valid();
    let info = CapsInput {
        smallest_page: sizes.smallest(),
        dma_avail: container.space.lock().available(),
        ranges: valid.iter().copied(),
    };

    let len = caps_len(valid.len()).ok_or(Cause::Other(ENOMEM))?;
    let mut caps = KVec::with_capacity(len as usize, GFP_KERNEL)?;
    write_caps(&info, |bytes| caps.extend_from_slice(bytes, GFP_KERNEL))?;
    Ok((header.reply(sizes.bitmap(), len), caps))
}

fn map_dma(container: &Container, arg: usize) -> Result<(), Cause> {
    container.map(&MapRequest::decode(&copy_in(arg, 0)?)?)
}

fn unmap_dma(container: &Container, arg: usize) -> Result<(), Cause> {
    let request = UnmapHeader::decode(&copy_in(arg, 0)?)?;
    let bitmap = if request.wants_bitmap() {
        let bitmap = BitmapArg::decode(&copy_in(arg, UnmapHeader::SIZE)?);
        check_user_memory(&bitmap)?;
        bitmap.check_capacity(request.size())?;
        Some(bitmap)
    } else {
        None
    };
    let unmapped = container.unmap(&request, bitmap.as_ref())?;
    copy_out(arg, 0, &request.encode(unmapped))
}

fn dirty_pages(container: &Container, arg: usize) -> Result<(), Cause> {
    container.model.require_v2()?;
    let header = copy_in(arg, 0)?;
    match DirtyOp::decode(&header)? {
        DirtyOp::Start => container.start_dirty(),
        DirtyOp::Stop => container.stop_dirty(),
        DirtyOp::Range(op) => {
            let request = DirtyRange::decode(&copy_in(arg, header.len())?)?;
            check_user_memory(&request.bitmap)?;
            request.check_capacity()?;
            container.dirty_range(op, &request)
        }
    }
}

fn check_user_memory(bitmap: &BitmapArg) -> Result<(), Cause> {
    if mm::user_range_ok(bitmap.data, bitmap.size) {
        Ok(())
    } else {
        Err(bitmap.outside_user_memory().into())
    }
}

fn copy_in<const N: usize>(arg: usize, offset: usize) -> Result<[u8; N], Cause> {
    let mut bytes = [0; N];
    user(arg, offset, N)?.reader().read_slice(&mut bytes)?;
    Ok(bytes)
}

fn copy_out(arg: usize, offset: usize, bytes: &[u8]) -> Result<(), Cause> {
    user(arg, offset, bytes.len())?
        .writer()
        .write_slice(bytes)?;
    Ok(())
}

fn user(arg: usize, offset: usize, len: usize) -> Result<UserSlice> {
    let addr = arg.checked_add(offset).ok_or(EFAULT)?;
    Ok(UserSlice::new(UserPtr::from_addr(addr), len))
}
