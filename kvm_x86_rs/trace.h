/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_x86_rs

#if !defined(VRS_KVM_X86_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VRS_KVM_X86_TRACE_H

#include <linux/tracepoint.h>

#include <asm/kvm_sregs_provider.h>

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

/* 0, 1, or 2 plus the number of the refusal in sregs::Refusal::ALL. */
#define vrs_show_outcome(outcome) __print_symbolic(outcome,		\
	{ 0, "applied" }, { 1, "ignored" }, { 2, "unknown-flag" },	\
	{ 3, "pdptrs" }, { 4, "long-mode-without-pae" },		\
	{ 5, "long-mode-without-lma" }, { 6, "cr3" },			\
	{ 7, "lma-outside-long-mode" }, { 8, "cs-l-outside-long-mode" },	\
	{ 9, "cr4" }, { 10, "cr0-high" }, { 11, "nw-without-cd" },	\
	{ 12, "pg-without-pe" }, { 13, "vendor" }, { 14, "efer" },	\
	{ 15, "apic-base" }, { 16, "apic-mode" })

/* As sregs::Trap, in its order. */
#define vrs_show_reg(reg) __print_symbolic(reg,				\
	{ 0, "cr0" }, { 1, "cr4" }, { 2, "cr8" }, { 3, "efer" })

#define vrs_show_effects(effects) __print_flags(effects, "|",		\
	{ KVM_SREGS_RESET_MMU, "reset-mmu" },				\
	{ KVM_SREGS_INIT_MMU, "init-mmu" },				\
	{ KVM_SREGS_UNLOAD_MMU, "unload-mmu" },				\
	{ KVM_SREGS_FLUSH_GUEST, "flush-guest" },			\
	{ KVM_SREGS_FLUSH_CURRENT, "flush-current" },			\
	{ KVM_SREGS_ASYNC_PF, "async-pf" })

/* User space has set the registers of a vCPU whose state is protected. */
TRACE_EVENT(sregs_set,
	TP_PROTO(int vcpu, u64 cr0, u64 cr4, u64 cr8, u64 efer, u64 apic_base, u8 outcome),
	TP_ARGS(vcpu, cr0, cr4, cr8, efer, apic_base, outcome),
	TP_STRUCT__entry(
		__field(int, vcpu)
		__field(u64, cr0)
		__field(u64, cr4)
		__field(u64, cr8)
		__field(u64, efer)
		__field(u64, apic_base)
		__field(u8, outcome)
	),
	TP_fast_assign(
		__entry->vcpu = vcpu;
		__entry->cr0 = cr0;
		__entry->cr4 = cr4;
		__entry->cr8 = cr8;
		__entry->efer = efer;
		__entry->apic_base = apic_base;
		__entry->outcome = outcome;
	),
	TP_printk("vcpu=%d cr0=%#llx cr4=%#llx cr8=%#llx efer=%#llx apic_base=%#llx %s",
		  __entry->vcpu, __entry->cr0, __entry->cr4, __entry->cr8, __entry->efer,
		  __entry->apic_base, vrs_show_outcome(__entry->outcome))
);

/* The guest has written to one of them. */
TRACE_EVENT(sregs_trap,
	TP_PROTO(int vcpu, u8 reg, u64 value, u64 efer, bool fault, u32 effects),
	TP_ARGS(vcpu, reg, value, efer, fault, effects),
	TP_STRUCT__entry(
		__field(int, vcpu)
		__field(u8, reg)
		__field(u64, value)
		__field(u64, efer)
		__field(bool, fault)
		__field(u32, effects)
	),
	TP_fast_assign(
		__entry->vcpu = vcpu;
		__entry->reg = reg;
		__entry->value = value;
		__entry->efer = efer;
		__entry->fault = fault;
		__entry->effects = effects;
	),
	TP_printk("vcpu=%d %s=%#llx efer=%#llx%s effects=%s",
		  __entry->vcpu, vrs_show_reg(__entry->reg), __entry->value, __entry->efer,
		  __entry->fault ? " #GP" : "", vrs_show_effects(__entry->effects))
);

#endif

/* This part must be outside protection. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
