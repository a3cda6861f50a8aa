// SPDX-License-Identifier: GPL-2.0

#include "../rust/helpers/kvm_x86.h"

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
