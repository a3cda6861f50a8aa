/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_arm64_rs

#if !defined(VRS_KVM_ARM64_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VRS_KVM_ARM64_TRACE_H

#include <linux/sizes.h>
#include <linux/tracepoint.h>

/* As stage2_map::Memory and stage2_map::Bound, in their order. */
#define vrs_show_memory(memory) __print_symbolic(memory,		\
	{ 0, "device" }, { 1, "normal-nc" }, { 2, "normal" })
#define vrs_show_bound(bound) __print_symbolic(bound,			\
	{ 0, "largest" }, { 1, "limit" }, { 2, "offset" }, { 3, "slot" },	\
	{ 4, "vma" }, { 5, "memory" }, { 6, "mixed" }, { 7, "missing" },	\
	{ 8, "elsewhere" }, { 9, "attributes" }, { 10, "read-only" },	\
	{ 11, "budget" })

/* A mapping of device memory was made, and why none larger. */
TRACE_EVENT(device_map,
	TP_PROTO(u64 ipa, u64 hva, u64 pa, u64 size, u8 memory, bool writable, bool exec,
		 u8 bound, u32 prefaulted),
	TP_ARGS(ipa, hva, pa, size, memory, writable, exec, bound, prefaulted),
	TP_STRUCT__entry(
		__field(u64, ipa)
		__field(u64, hva)
		__field(u64, pa)
		__field(u64, size)
		__field(u8, memory)
		__field(bool, writable)
		__field(bool, exec)
		__field(u8, bound)
		__field(u32, prefaulted)
	),
	TP_fast_assign(
		__entry->ipa = ipa;
		__entry->hva = hva;
		__entry->pa = pa;
		__entry->size = size;
		__entry->memory = memory;
		__entry->writable = writable;
		__entry->exec = exec;
		__entry->bound = bound;
		__entry->prefaulted = prefaulted;
	),
	TP_printk("ipa=%#llx hva=%#llx pa=%#llx size=%#llx memory=%s prot=r%c%c bound=%s prefaulted=%u",
		  __entry->ipa, __entry->hva, __entry->pa, __entry->size,
		  vrs_show_memory(__entry->memory), __entry->writable ? 'w' : '-',
		  __entry->exec ? 'x' : '-', vrs_show_bound(__entry->bound),
		  __entry->prefaulted)
);

#endif

/* This part must be outside protection. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
