/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VRS_HELPERS_KVM_X86_H
#define VRS_HELPERS_KVM_X86_H

#include <linux/types.h>

u64 vrs_kvm_phys(const void *ptr);
void vrs_kvm_notify_self(void);

void vrs_trace_pi_wait(u32 cpu, bool notified_itself);
void vrs_trace_pi_wakeup(u32 cpu, u64 waiting, u64 woken);
void vrs_trace_pi_irte(u32 host_irq, u64 descriptor, u32 vector, int error);

#endif
