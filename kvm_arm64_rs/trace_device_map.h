/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VRS_KVM_ARM64_TRACE_DEVICE_MAP_H
#define VRS_KVM_ARM64_TRACE_DEVICE_MAP_H

#include <linux/types.h>

void vrs_trace_device_map(u64 ipa, u64 hva, u64 pa, u64 size, u8 memory, bool writable,
			  bool exec, u8 bound, u32 prefaulted);

#endif
