// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters, declared in C because the kernel crate's parameters are
 * neither visible in sysfs nor writable after load.
 */
#include <linux/moduleparam.h>

#include "params.h"

unsigned int vrs_prefault = 512;
module_param_named(prefault, vrs_prefault, uint, 0644);
MODULE_PARM_DESC(prefault,
		 "Most entries of the VMM's page table that one fault of a guest has filled, to make a larger block of it; 0: none (512).");

unsigned int vrs_max_leaves = 4096;
module_param_named(max_leaves, vrs_max_leaves, uint, 0644);
MODULE_PARM_DESC(max_leaves,
		 "Most entries of the VMM's page table that are looked at for one block, which happens with preemption disabled (4096).");
