// SPDX-License-Identifier: GPL-2.0

#include <linux/preempt.h>

#include <asm/apic.h>
#include <asm/irq_vectors.h>
#include <asm/page.h>
#include <asm/smp.h>

#include "kvm_x86.h"

u64 vrs_kvm_phys(const void *ptr)
{
	return __pa(ptr);
}

u32 vrs_kvm_apic_id(unsigned int cpu)
{
	return cpu_physical_id(cpu);
}

bool vrs_kvm_x2apic(void)
{
	return x2apic_mode;
}

void vrs_kvm_notify_self(void)
{
	__apic_send_IPI_self(POSTED_INTR_WAKEUP_VECTOR);
}

/* As above, where IRQs are enabled. */
void vrs_kvm_notify_this_cpu(void)
{
	preempt_disable();
	vrs_kvm_notify_self();
	preempt_enable();
}
