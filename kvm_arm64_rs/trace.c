// SPDX-License-Identifier: GPL-2.0

#include "trace_device_map.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

void vrs_trace_device_map(u64 ipa, u64 hva, u64 pa, u64 size, u8 memory, bool writable,
			  bool exec, u8 bound, u32 prefaulted)
{
	trace_device_map(ipa, hva, pa, size, memory, writable, exec, bound, prefaulted);
}
