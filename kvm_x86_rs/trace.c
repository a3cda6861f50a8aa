// SPDX-License-Identifier: GPL-2.0

#include <linux/kvm_host.h>

#include "../rust/helpers/kvm_x86.h"
#include "trace_sregs.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

void vrs_trace_pi_wait(u32 cpu, bool notified_itself)
{
	trace_pi_wait(cpu, notified_itself);
}

void vrs_trace_pi_wakeup(u32 cpu, u64 waiting, u64 woken)
{
	trace_pi_wakeup(cpu, waiting, woken);
}

void vrs_trace_pi_irte(u32 host_irq, u64 descriptor, u32 vector, int error)
{
	trace_pi_irte(host_irq, descriptor, vector, error);
}

void vrs_trace_sregs_set(const struct kvm_vcpu *vcpu, u64 cr0, u64 cr4, u64 cr8, u64 efer,
			 u64 apic_base, u8 outcome)
{
	trace_sregs_set(vcpu->vcpu_id, cr0, cr4, cr8, efer, apic_base, outcome);
}

void vrs_trace_sregs_trap(const struct kvm_vcpu *vcpu, u8 reg, u64 value, u64 efer, bool fault,
			  u32 effects)
{
	trace_sregs_trap(vcpu->vcpu_id, reg, value, efer, fault, effects);
}
