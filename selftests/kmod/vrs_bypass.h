/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What user space asks of vrs_bypass.ko through /dev/vrs_bypass.
 *
 * A file is a device with one interrupt and the entry for it in the table of
 * an IOMMU that can post interrupts. It starts with the interrupt going to the
 * host, which signals an eventfd. KVM may have it posted to a vCPU instead,
 * once it is connected and KVM_IRQFD has been given the same eventfd.
 *
 * While any file is open KVM believes that there is such an IOMMU.
 */
#ifndef VRS_BYPASS_H
#define VRS_BYPASS_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VRS_BYPASS_MAGIC	0xee

/* Where device and driver meet, in memory of the guest. Does not cross pages. */
struct vrs_bypass_mailbox {
	/* The device counts here, before each interrupt, */
	__u64 posted;
	/* the driver copies the count here when it is interrupted, */
	__u64 seen;
	/* and before that its time stamp counter here. */
	__u64 stamp;
	__u64 unused;
} __attribute__((aligned(32)));

/* When a device posts. */
#define VRS_BYPASS_AT_ONCE	0
/* The vCPU has halted: notifications go to the host, to wake it. */
#define VRS_BYPASS_WAITING	1
/* The vCPU has left its CPU, and wants no notifications. */
#define VRS_BYPASS_SUPPRESSED	2
/* There is a vCPU to post to. */
#define VRS_BYPASS_SET		3

/* Posts interrupts from a thread of its own. */
struct vrs_bypass_start {
	/* The address of a mailbox. */
	__u64 mailbox;
	__u64 posts;
	/* Post so many, then wait until all have been seen. 0: never wait. */
	__u32 burst;
	/* Let pass, at random, less than so many cycles after that. */
	__u32 gap;
	__u32 seed;
	/* VRS_BYPASS_AT_ONCE or the like, for the first of a burst. */
	__u32 when;
	/* From this CPU; -1: from any. */
	__s32 cpu;
	/* Give up waiting after so many milliseconds. */
	__u32 patience;
};

/* Waits until a thread is done, and says what became of it. */
struct vrs_bypass_wait {
	/* Interrupts that were posted. */
	__u64 posts;
	/* The control word of the descriptor when it ended, 0 if there is none. */
	__u64 control;
	/*
	 * 0; -ETIMEDOUT: the last one was not seen; -EAGAIN: the moment to post
	 * the next did not come; -EINTR: it was stopped.
	 */
	__s32 error;
	__u32 unused;
};

/* Since the file was opened. */
struct vrs_bypass_counts {
	/* Changes of the entry: to a vCPU, back to the host, and refused ones. */
	__u64 set;
	__u64 cleared;
	__u64 refused;
	/* Interrupts to the host, */
	__u64 remapped;
	/* and to descriptors, by what became of them: */
	__u64 notified_running;
	__u64 notified_waiting;
	/* a notification that makes no sense, */
	__u64 misdirected;
	/* none, because of ON or of SN. */
	__u64 outstanding;
	__u64 suppressed;
	/* Of these, those that were requested already. */
	__u64 merged;
	/* Whether a vCPU is set now, and the Linux interrupt. */
	__u32 is_set;
	__u32 irq;
};

/* Which eventfd the host signals. Once, before anything else. */
#define VRS_BYPASS_TRIGGER	_IOW(VRS_BYPASS_MAGIC, 0, __s32)
/* Registers as producer of the eventfd; refuses a vCPU if the argument is not 0. */
#define VRS_BYPASS_CONNECT	_IOW(VRS_BYPASS_MAGIC, 1, __u32)
#define VRS_BYPASS_DISCONNECT	_IO(VRS_BYPASS_MAGIC, 2)
#define VRS_BYPASS_START	_IOW(VRS_BYPASS_MAGIC, 3, struct vrs_bypass_start)
#define VRS_BYPASS_WAIT		_IOR(VRS_BYPASS_MAGIC, 4, struct vrs_bypass_wait)
#define VRS_BYPASS_COUNTS	_IOR(VRS_BYPASS_MAGIC, 5, struct vrs_bypass_counts)

/* read() gives how many cycles each burst took until it was seen, 64 bits each. */

#endif
