// SPDX-License-Identifier: GPL-2.0

#include <asm/apic.h>
#include <asm/irq_vectors.h>
#include <asm/page.h>

#include "kvm_x86.h"

u64 vrs_kvm_phys(const void *ptr)
{
	return __pa(ptr);
}

void vrs_kvm_notify_self(void)
{
	__apic_send_IPI_self(POSTED_INTR_WAKEUP_VECTOR);
}
