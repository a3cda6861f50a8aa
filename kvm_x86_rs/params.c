// SPDX-License-Identifier: GPL-2.0
/*
 * Declared in C because the kernel crate's parameters are neither visible in
 * sysfs nor writable after load.
 */
#include <linux/module.h>

#include "params.h"

bool vrs_sregs_updates = true;
module_param_named(sregs_updates, vrs_sregs_updates, bool, 0644);
MODULE_PARM_DESC(sregs_updates,
		 "Let user space update the special registers of vCPUs whose state is protected, where KVM checks and drops them (Y).");
