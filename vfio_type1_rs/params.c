// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters, named and defaulting as those of vfio_iommu_type1. They
 * are declared in C because the kernel crate's parameters are neither visible
 * in sysfs nor writable after load.
 */
#include <linux/module.h>

#include "params.h"

bool vrs_allow_unsafe_interrupts;
module_param_named(allow_unsafe_interrupts, vrs_allow_unsafe_interrupts, bool, 0644);
MODULE_PARM_DESC(allow_unsafe_interrupts,
		 "Let devices be used on platforms without interrupt remapping (N).");

bool vrs_disable_hugepages;
module_param_named(disable_hugepages, vrs_disable_hugepages, bool, 0644);
MODULE_PARM_DESC(disable_hugepages,
		 "Map page by page, so that the IOMMU uses its smallest page size (N).");

unsigned int vrs_dma_entry_limit = U16_MAX;
module_param_named(dma_entry_limit, vrs_dma_entry_limit, uint, 0644);
MODULE_PARM_DESC(dma_entry_limit,
		 "Maximum number of DMA mappings per container, read when it is opened (65535).");

/* Not a parameter of vfio_iommu_type1, which has no use for it. */
unsigned long vrs_dirty_granule;
module_param_named(dirty_granule, vrs_dirty_granule, ulong, 0644);
MODULE_PARM_DESC(dirty_granule,
		 "Largest page in bytes of an IOMMU that tracks dirty pages, which are found dirty as a whole; for containers opened from now on; 0: no limit (0).");
