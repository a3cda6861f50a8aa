/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VRS_TYPE1_PARAMS_H
#define VRS_TYPE1_PARAMS_H

#include <linux/types.h>

extern bool vrs_allow_unsafe_interrupts;
extern bool vrs_disable_hugepages;
extern unsigned int vrs_dma_entry_limit;
extern unsigned long vrs_dirty_granule;

#endif
