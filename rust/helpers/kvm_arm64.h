/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VRS_KVM_ARM64_H
#define VRS_KVM_ARM64_H

#include <linux/types.h>

bool vrs_kvm_is_memory(u64 pfn);
bool vrs_kvm_may_log(void);

#endif
