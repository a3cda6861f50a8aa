/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What user space asks of the test devices of vrs_emulated.ko, through the
 * file that VFIO_GROUP_GET_DEVICE_FD returns.
 */
#ifndef VRS_EMULATED_H
#define VRS_EMULATED_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VRS_EMULATED_MAGIC 0xee

/*
 * vfio_pin_pages() of @npages pages from @iova on. @prot is 1 to read and 2
 * to write. Returns the number of pages pinned. After an error @stale is the
 * number of struct page pointers left in the array handed to VFIO.
 */
struct vrs_emulated_pin {
	__u64 iova;
	__u32 npages;
	__u32 prot;
	__u32 stale;
	__u32 reserved;
};
#define VRS_EMULATED_PIN _IOWR(VRS_EMULATED_MAGIC, 0, struct vrs_emulated_pin)

/*
 * vfio_unpin_pages(). ENOENT, and nothing is unpinned, unless the device has
 * pinned all pages of the range; @prot is ignored.
 */
#define VRS_EMULATED_UNPIN _IOW(VRS_EMULATED_MAGIC, 1, struct vrs_emulated_pin)

/* vfio_dma_rw() of up to 1 MiB, by the caller or by a kernel thread. */
struct vrs_emulated_rw {
	__u64 iova;
	__u64 data;
	__u32 len;
	__u32 flags;
#define VRS_EMULATED_RW_WRITE	(1 << 0)
#define VRS_EMULATED_RW_KTHREAD	(1 << 1)
};
#define VRS_EMULATED_RW _IOW(VRS_EMULATED_MAGIC, 2, struct vrs_emulated_rw)

/*
 * Fills a page the device has pinned with @byte, through its struct page, as
 * a device would that does DMA. ENOENT if it is not pinned.
 */
struct vrs_emulated_fill {
	__u64 iova;
	__u32 byte;
	__u32 reserved;
};
#define VRS_EMULATED_FILL _IOW(VRS_EMULATED_MAGIC, 3, struct vrs_emulated_fill)

struct vrs_emulated_counters {
	/* Calls of dma_unmap since the module was loaded, and those ignored. */
	__u64 unmaps;
	__u64 refused;
	/* Pages pinned now, and how often all together. */
	__u64 pages;
	__u64 users;
};
#define VRS_EMULATED_COUNTERS \
	_IOR(VRS_EMULATED_MAGIC, 4, struct vrs_emulated_counters)

/*
 * The argument is 1 to ignore dma_unmap from now on, 0 to obey again, as the
 * device does whenever it is opened. With pages pinned vfio_iommu_type1
 * answers such a device with BUG().
 */
#define VRS_EMULATED_STUBBORN _IO(VRS_EMULATED_MAGIC, 5)

#endif
