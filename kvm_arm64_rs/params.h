/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VRS_KVM_ARM64_PARAMS_H
#define VRS_KVM_ARM64_PARAMS_H

extern unsigned int vrs_prefault;
extern unsigned int vrs_max_leaves;

#endif
