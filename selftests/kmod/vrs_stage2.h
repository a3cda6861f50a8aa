/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What user space asks of vrs_stage2.ko through /dev/vrs_stage2.
 *
 * A mapping of the file maps physical addresses, the offset being the first
 * one, a page at a time as they are accessed, read-only until the process has
 * written to them, and only what is no memory: cacheable, unless the file was
 * opened with O_SYNC.
 *
 * A file can hold one thread, once, at a place where others then have time to
 * do wrong. It goes on when it is released, when the file is closed, or after
 * VRS_STAGE2_SECONDS.
 */
#ifndef VRS_STAGE2_H
#define VRS_STAGE2_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VRS_STAGE2_MAGIC	0xeb

#define VRS_STAGE2_SECONDS	60

/* What the stage-2 page table of a vCPU's VM has for an address. */
struct vrs_stage2_leaf {
	__u64 ipa;
	__s32 vcpu;
	/* Of the descriptor. */
	__s32 level;
	/* As the processor reads it; bit 0 is clear if nothing is mapped. */
	__u64 descriptor;
	/* What the vCPU runs with, and what the page table is walked by. */
	__u64 hcr_el2;
	__u64 vtcr_el2;
};
#define VRS_STAGE2_LEAF		_IOWR(VRS_STAGE2_MAGIC, 0, struct vrs_stage2_leaf)

/* Virtual addresses of the caller. */
struct vrs_stage2_range {
	__u64 first;
	__u64 last;
};

/*
 * Hold the thread that begins to take away any of what is mapped there, after
 * the VMs that are made from now on have heard of it.
 */
#define VRS_STAGE2_HOLD_UNMAP	_IOW(VRS_STAGE2_MAGIC, 1, struct vrs_stage2_range)

/*
 * Hold the thread that has a page of this file faulted in. It is asked to look
 * again then at what is mapped, and has no lock meanwhile.
 */
#define VRS_STAGE2_HOLD_FAULT	_IO(VRS_STAGE2_MAGIC, 2)

/* Wait until a thread is held. ETIMEDOUT after VRS_STAGE2_SECONDS. */
#define VRS_STAGE2_WAIT		_IO(VRS_STAGE2_MAGIC, 3)

/* Let it go on. ETIMEDOUT if it already has, for it was held too long. */
#define VRS_STAGE2_RELEASE	_IO(VRS_STAGE2_MAGIC, 4)

#endif
