/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_x86_rs

#if !defined(VRS_KVM_X86_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VRS_KVM_X86_TRACE_H

#include <linux/tracepoint.h>

/* A vCPU halts, and posted interrupts are to wake it. */
TRACE_EVENT(pi_wait,
	TP_PROTO(u32 cpu, bool notified_itself),
	TP_ARGS(cpu, notified_itself),
	TP_STRUCT__entry(
		__field(u32, cpu)
		__field(bool, notified_itself)
	),
	TP_fast_assign(
		__entry->cpu = cpu;
		__entry->notified_itself = notified_itself;
	),
	TP_printk("cpu=%u notified_itself=%d", __entry->cpu, __entry->notified_itself)
);

/* A CPU was notified, and has woken some of the vCPUs that wait there. */
TRACE_EVENT(pi_wakeup,
	TP_PROTO(u32 cpu, u64 waiting, u64 woken),
	TP_ARGS(cpu, waiting, woken),
	TP_STRUCT__entry(
		__field(u32, cpu)
		__field(u64, waiting)
		__field(u64, woken)
	),
	TP_fast_assign(
		__entry->cpu = cpu;
		__entry->waiting = waiting;
		__entry->woken = woken;
	),
	TP_printk("cpu=%u waiting=%llu woken=%llu", __entry->cpu, __entry->waiting,
		  __entry->woken)
);

/* A device is to post to a descriptor, or, if there is none, to interrupt the host. */
TRACE_EVENT(pi_irte,
	TP_PROTO(u32 host_irq, u64 descriptor, u32 vector, int error),
	TP_ARGS(host_irq, descriptor, vector, error),
	TP_STRUCT__entry(
		__field(u32, host_irq)
		__field(u64, descriptor)
		__field(u32, vector)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->host_irq = host_irq;
		__entry->descriptor = descriptor;
		__entry->vector = vector;
		__entry->error = error;
	),
	TP_printk("host_irq=%u descriptor=%#llx vector=%#x error=%d", __entry->host_irq,
		  __entry->descriptor, __entry->vector, __entry->error)
);

#endif

/* This part must be outside protection. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
