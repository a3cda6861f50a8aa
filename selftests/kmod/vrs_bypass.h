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

/* What it takes a CPU, in cycles. Bochs counts instructions. */
enum vrs_bypass_cost {
	/* To read the time stamp counter twice, which is a part of all others. */
	VRS_COST_NOTHING,
	/* To leave the CPU by preemption, */
	VRS_COST_PUT_PREEMPTED,
	/* and to come back. */
	VRS_COST_LOAD_PREEMPTED,
	/* To leave it in order to wait for interrupts, */
	VRS_COST_PUT_WAITING,
	/* and to come back. */
	VRS_COST_LOAD_WAITED,
	/* To come to a CPU it was not on before. */
	VRS_COST_LOAD_MOVED,
	/* To handle a notification: nobody waits, a vCPU does, it is woken. */
	VRS_COST_WAKEUP_NOBODY,
	VRS_COST_WAKEUP_OTHER,
	VRS_COST_WAKEUP,
	VRS_COSTS
};

/*
 * Measures KVM's functions for a vCPU that the interrupt is posted to, and
 * which must not run. Where the functions are is to be had from /proc/kallsyms;
 * it is compared with what the kernel finds there.
 */
struct vrs_bypass_measure {
	__s32 vcpu;
	__u32 rounds;
	__u64 vcpu_load;
	__u64 vcpu_put;
	__u64 vmx_vcpu_pi_load;
	__u64 vmx_vcpu_pi_put;
	__u64 wakeup_ipi;
	/* Of all rounds together. */
	__u64 costs[VRS_COSTS];
};

/* Which eventfd the host signals. Once, before anything else. */
#define VRS_BYPASS_TRIGGER	_IOW(VRS_BYPASS_MAGIC, 0, __s32)
/* Registers as producer of the eventfd; refuses a vCPU if the argument is not 0. */
#define VRS_BYPASS_CONNECT	_IOW(VRS_BYPASS_MAGIC, 1, __u32)
#define VRS_BYPASS_DISCONNECT	_IO(VRS_BYPASS_MAGIC, 2)
#define VRS_BYPASS_START	_IOW(VRS_BYPASS_MAGIC, 3, struct vrs_bypass_start)
#define VRS_BYPASS_WAIT		_IOR(VRS_BYPASS_MAGIC, 4, struct vrs_bypass_wait)
#define VRS_BYPASS_COUNTS	_IOR(VRS_BYPASS_MAGIC, 5, struct vrs_bypass_counts)
#define VRS_BYPASS_MEASURE	_IOWR(VRS_BYPASS_MAGIC, 6, struct vrs_bypass_measure)

/* read() gives how many cycles each burst took until it was seen, 64 bits each. */

#endif
