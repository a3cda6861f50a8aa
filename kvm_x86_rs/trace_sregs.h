/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VRS_KVM_X86_TRACE_SREGS_H
#define VRS_KVM_X86_TRACE_SREGS_H

#include <linux/types.h>

struct kvm_vcpu;

void vrs_trace_sregs_set(const struct kvm_vcpu *vcpu, u64 cr0, u64 cr4, u64 cr8, u64 efer,
			 u64 apic_base, u8 outcome);
void vrs_trace_sregs_trap(const struct kvm_vcpu *vcpu, u8 reg, u64 value, u64 efer, bool fault,
			  u32 effects);

#endif
