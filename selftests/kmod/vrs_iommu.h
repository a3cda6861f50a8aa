/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What user space asks of the test devices of vrs_iommu.ko, through the file
 * that VFIO_GROUP_GET_DEVICE_FD returns.
 *
 * The devices sit behind software IOMMUs, their units. The attribute `unit`
 * of a platform device vrs_iommu.N names its unit and its place there:
 * "plain 0". Each device is an IOMMU group of its own.
 *
 * Region 0 of a device is VRS_IOMMU_REGION bytes of memory of its own, which
 * can be mapped: consecutive frames, at a multiple of their size, which the
 * kernel does not count (PageReserved). Other devices can do DMA to it.
 */
#ifndef VRS_IOMMU_H
#define VRS_IOMMU_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VRS_IOMMU_MAGIC		0xef
#define VRS_IOMMU_REGION	(4U << 20)

/* Agents of a device that do DMA, each with an IOTLB of its own. */
#define VRS_IOMMU_ENGINES	8

/* Bytes one DMA request can ask for. */
#define VRS_IOMMU_DMA_MAX	(4ULL << 30)

enum vrs_iommu_op {
	/*
	 * Writes. The eight bytes at an address that is a multiple of eight
	 * become @seed + address / 8 * VRS_IOMMU_STEP, little endian; the
	 * first and the last may be written in part.
	 */
	VRS_IOMMU_FILL,
	/* Reads from @iova2, writes to @iova. */
	VRS_IOMMU_COPY,
	/* Writes as FILL does, but only the first eight bytes of each 4K. */
	VRS_IOMMU_TOUCH,
	/*
	 * Reads; @sum is the sum, over all bytes, of (byte + 1) times (its
	 * offset from @iova + 1), modulo 2^64.
	 */
	VRS_IOMMU_CHECKSUM,
	/*
	 * Writes as FILL does; in the background each piece has a seed of its
	 * own, beginning with @seed, so that no two write the same.
	 */
	VRS_IOMMU_CHURN,
};
#define VRS_IOMMU_STEP	0x9e3779b97f4a7c15ULL

enum vrs_iommu_fault {
	VRS_IOMMU_OK,
	/* The device has no page table: DMA is blocked. */
	VRS_IOMMU_BLOCKED,
	/* More address bits than the page table translates. */
	VRS_IOMMU_WIDTH,
	/* Nothing is mapped there. */
	VRS_IOMMU_ABSENT,
	/* It is mapped, but not for reading, or not for writing. */
	VRS_IOMMU_NO_READ,
	VRS_IOMMU_NO_WRITE,
	/* It is mapped to frames that are no memory. */
	VRS_IOMMU_NO_MEMORY,
};

/*
 * DMA by @threads kernel threads, each with its part of the range, or by the
 * calling task if that is 0; answers when all are done. A part ends with its
 * first fault.
 */
struct vrs_iommu_dma {
	__u32 op;
	__u32 threads;
	__u64 iova;
	__u64 iova2;
	__u64 len;
	__u64 seed;
	/* Bytes written; for TOUCH and CHECKSUM: walked over. */
	__u64 done;
	__u64 sum;
	/* Of all faults that at the lowest offset. */
	__u64 fault_iova;
	__u32 fault;
	__u32 reserved;
};
#define VRS_IOMMU_DMA	_IOWR(VRS_IOMMU_MAGIC, 0, struct vrs_iommu_dma)

/*
 * The same in the background by @threads threads (at least one), in pieces of
 * up to 4K at random places of the range, faults or not, until STOP or the
 * last close. EBUSY if there is some already.
 */
#define VRS_IOMMU_START	_IOW(VRS_IOMMU_MAGIC, 1, struct vrs_iommu_dma)

/* ENOENT if nothing was started. */
struct vrs_iommu_stopped {
	/* Pieces done, and those of them that ended in a fault. */
	__u64 pieces;
	__u64 faults;
	/* One of the faults. */
	__u64 fault_iova;
	__u32 fault;
	__u32 reserved;
};
#define VRS_IOMMU_STOP	_IOR(VRS_IOMMU_MAGIC, 2, struct vrs_iommu_stopped)

/* Counts of STOP so far, while it goes on. ENOENT if nothing was started. */
#define VRS_IOMMU_PEEK	_IOR(VRS_IOMMU_MAGIC, 3, struct vrs_iommu_stopped)

struct vrs_iommu_leaf {
	__u64 iova;
	__u64 phys;
	__u64 size;
	/* IOMMU_READ (1) and IOMMU_WRITE (2). */
	__u32 prot;
	__u32 flags;
#define VRS_IOMMU_LEAF_CACHE	(1 << 0)	/* mapped with IOMMU_CACHE */
#define VRS_IOMMU_LEAF_DIRTY	(1 << 1)
#define VRS_IOMMU_LEAF_MEMORY	(1 << 2)	/* @tag is valid */
	/* The first eight bytes of the memory behind it. */
	__u64 tag;
};

/*
 * Reads the page table the device uses: up to @count leaves go to @leaves, in
 * order, beginning with the one that has @iova or else the next. Returns their number. It is not a snapshot if it
 * changes meanwhile. ENOENT if DMA is blocked.
 */
struct vrs_iommu_walk {
	__u64 iova;
	__u64 leaves;
	__u32 count;
	__u32 reserved;
};
#define VRS_IOMMU_WALK	_IOW(VRS_IOMMU_MAGIC, 4, struct vrs_iommu_walk)

enum vrs_iommu_what {
	/* A call of map_pages; nothing is mapped by it. */
	VRS_IOMMU_FAIL_MAP,
	/* A leaf; what the same call mapped before it stays. */
	VRS_IOMMU_FAIL_LEAF,
	/* Memory for a table of the page table. */
	VRS_IOMMU_FAIL_TABLE,
	/* Allocation of a domain. */
	VRS_IOMMU_FAIL_ALLOC,
	/* A device is attached to a page table. */
	VRS_IOMMU_FAIL_ATTACH,
	/* A call of unmap_pages, which unmaps nothing. */
	VRS_IOMMU_FAIL_UNMAP,
	/* The same, but it unmaps its first leaf. */
	VRS_IOMMU_FAIL_UNMAP_SHORT,
	/* A dirty bit: the leaf stays clean, and the IOTLB believes it dirty. */
	VRS_IOMMU_FAIL_DIRTY,
	VRS_IOMMU_FAIL_KINDS,
};

/*
 * The @nth such call in the device's unit from now on fails once, with @error
 * (a positive errno; 0 is ENOMEM); 0 turns that off, as does the last close
 * of a device of the unit.
 */
struct vrs_iommu_fail {
	__u32 what;
	__u32 nth;
	__u32 error;
	__u32 reserved;
};
#define VRS_IOMMU_FAIL	_IOW(VRS_IOMMU_MAGIC, 5, struct vrs_iommu_fail)

/* Of the device's unit; also in debugfs, vrs_iommu/units, a line for each. */
struct vrs_iommu_stats {
	/* How many there are now. */
	__u64 domains;
	__u64 tables;
	__u64 leaves_4k;
	__u64 leaves_2m;
	__u64 leaves_1g;
	/* Calls since the module was loaded. */
	__u64 maps;
	__u64 unmaps;
	__u64 flushes;
	__u64 attaches;
	__u64 faults;
	/* Injected failures that happened. */
	__u64 failed;
};
#define VRS_IOMMU_STATS	_IOR(VRS_IOMMU_MAGIC, 6, struct vrs_iommu_stats)

/*
 * Has the device's driver pin the page at an address, as if it had to reach
 * it itself, until UNPIN, unmapping or the last close. EBUSY if it has one.
 */
#define VRS_IOMMU_PIN	_IOW(VRS_IOMMU_MAGIC, 7, __u64)

/* ENOENT if nothing is pinned. */
#define VRS_IOMMU_UNPIN	_IO(VRS_IOMMU_MAGIC, 8)

#endif
