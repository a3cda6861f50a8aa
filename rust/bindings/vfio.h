/* SPDX-License-Identifier: GPL-2.0 */
/* What the kernel crate does not bind; input to bindgen. */

#include <linux/iommu.h>
#include <linux/vfio.h>
#include <../../drivers/vfio/vfio.h>

#include "../helpers/helpers.h"
#include "../../vfio_type1_rs/params.h"

/* Where C has the fields that Rust reads; compared in layout.rs. */
static const unsigned long VRS_OFFSET_TASK_MM = offsetof(struct task_struct, mm);
static const unsigned long VRS_OFFSET_TASK_PID = offsetof(struct task_struct, pid);
static const unsigned long VRS_OFFSET_TASK_GROUP_LEADER = offsetof(struct task_struct, group_leader);
static const unsigned long VRS_OFFSET_MM_LOCKED_VM = offsetof(struct mm_struct, locked_vm);
static const unsigned long VRS_OFFSET_VMA_VM_FLAGS = offsetof(struct vm_area_struct, vm_flags);
static const unsigned long VRS_OFFSET_DOMAIN_PGSIZE_BITMAP = offsetof(struct iommu_domain, pgsize_bitmap);
static const unsigned long VRS_OFFSET_DOMAIN_GEOMETRY = offsetof(struct iommu_domain, geometry);
static const unsigned long VRS_SIZE_IOTLB_GATHER = sizeof(struct iommu_iotlb_gather);
static const unsigned long VRS_SIZE_RESV_REGION = sizeof(struct iommu_resv_region);
static const unsigned long VRS_SIZE_FOLLOW_PFNMAP_ARGS = sizeof(struct follow_pfnmap_args);
static const unsigned long VRS_SIZE_MUTEX = sizeof(struct mutex);
static const unsigned long VRS_SIZE_RAW_SPINLOCK = sizeof(raw_spinlock_t);
static const unsigned long VRS_SIZE_RWSEM = sizeof(struct rw_semaphore);
static const unsigned long VRS_SIZE_DRIVER_OPS = sizeof(struct vfio_iommu_driver_ops);
