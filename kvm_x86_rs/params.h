/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VRS_KVM_X86_PARAMS_H
#define VRS_KVM_X86_PARAMS_H

#include <linux/types.h>

extern bool vrs_sregs_updates;

#endif
