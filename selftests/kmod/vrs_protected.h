/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What user space asks of vrs_protected.ko through /dev/vrs_protected.
 *
 * A file stands for at most one vCPU, and for the hardware that encrypts its
 * state: it makes KVM believe that the state is protected, and has writes of
 * the guest trap. The vCPU is an ordinary one again when the file is closed,
 * which must be before it runs.
 */
#ifndef VRS_PROTECTED_H
#define VRS_PROTECTED_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VRS_PROTECTED_MAGIC	0xed

/* The type of the VM says that state is protected, as for SEV-SNP. */
#define VRS_PROTECT_SEALED	(1U << 0)

/*
 * Where the functions are which KVM keeps to itself, by /proc/kallsyms. They
 * are compared with what the kernel finds there.
 */
struct vrs_protect {
	__s32 vcpu;
	__u32 flags;
	__u64 svm_invoke_exit_handler;
	__u64 vcpu_load;
	__u64 vcpu_put;
};

/* A VMEXIT_CR0_WRITE_TRAP, or the like, as the hardware leaves the guest. */
struct vrs_trap {
	__u64 exit_code;
	__u64 exit_info_1;
	/* What the exit handler returned. */
	__s32 result;
	/* The exception that the guest gets, or -1. */
	__s32 exception;
};

/* What KVM keeps to itself. Reading it clears the requests. */
struct vrs_state {
	__u64 requests;
	/* The paging mode, as KVM understands it. */
	__u64 cpu_role;
	/* What KVM_REQ_* the bits of requests are. */
	__u32 flush_guest;
	__u32 flush_current;
	__u32 async_pf;
	__u32 tdp;
};

#define VRS_PROTECT	_IOW(VRS_PROTECTED_MAGIC, 0, struct vrs_protect)
#define VRS_TRAP	_IOWR(VRS_PROTECTED_MAGIC, 1, struct vrs_trap)
#define VRS_STATE	_IOR(VRS_PROTECTED_MAGIC, 2, struct vrs_state)

#endif
