// SPDX-License-Identifier: GPL-2.0

#include <linux/memblock.h>
#include <linux/ratelimit.h>

#include "kvm_arm64.h"

bool vrs_kvm_is_memory(u64 pfn)
{
	return pfn_is_map_memory(pfn);
}

bool vrs_kvm_may_log(void)
{
	static DEFINE_RATELIMIT_STATE(refusals, DEFAULT_RATELIMIT_INTERVAL,
				      DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&refusals);
}
