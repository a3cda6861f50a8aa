// SPDX-License-Identifier: GPL-2.0

#include <linux/iommu.h>

#include "helpers.h"

void vrs_iotlb_gather_init(struct iommu_iotlb_gather *gather)
{
	iommu_iotlb_gather_init(gather);
}

void vrs_iotlb_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather)
{
	iommu_iotlb_sync(domain, gather);
}

bool vrs_enforce_cache_coherency(struct iommu_domain *domain)
{
	return domain->ops->enforce_cache_coherency &&
	       domain->ops->enforce_cache_coherency(domain);
}

/* Inline where the architecture does not translate interrupt doorbells. */
int vrs_set_msi_window(struct iommu_domain *domain, phys_addr_t base)
{
	return iommu_get_msi_cookie(domain, base);
}
