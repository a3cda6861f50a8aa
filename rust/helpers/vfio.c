// SPDX-License-Identifier: GPL-2.0

#include <linux/list.h>
#include <linux/ratelimit.h>
#include <linux/vfio.h>

#include "helpers.h"

bool vrs_vfio_device_wants_unmap(const struct vfio_device *device)
{
	return device->ops->dma_unmap;
}

void vrs_vfio_device_list_init(struct list_head *devices)
{
	INIT_LIST_HEAD(devices);
}

void vrs_vfio_device_list_add(struct list_head *devices, struct vfio_device *device)
{
	list_add(&device->iommu_entry, devices);
}

void vrs_vfio_device_list_del(struct vfio_device *device)
{
	list_del(&device->iommu_entry);
}

void vrs_vfio_devices_unmap(struct list_head *devices, u64 iova, u64 length)
{
	struct vfio_device *device;

	list_for_each_entry(device, devices, iommu_entry)
		device->ops->dma_unmap(device, iova, length);
}

bool vrs_vfio_may_log_refusal(void)
{
	static DEFINE_RATELIMIT_STATE(refusals, DEFAULT_RATELIMIT_INTERVAL,
				      DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&refusals);
}
