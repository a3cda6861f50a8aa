/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Inline C made callable for the abstraction crates, one source per subsystem.
 * The kernel's own helpers are named rust_helper_*; these are vrs_*.
 */
#ifndef VRS_HELPERS_H
#define VRS_HELPERS_H

#include <linux/spinlock_types.h>
#include <linux/types.h>

struct iommu_domain;
struct iommu_iotlb_gather;
struct list_head;
struct lock_class_key;
struct mm_struct;
struct page;
struct task_struct;
struct vfio_device;

/* sync.c */
void vrs_raw_spin_lock_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key);
void vrs_raw_spin_lock(raw_spinlock_t *lock);
void vrs_raw_spin_lock_nested(raw_spinlock_t *lock, int subclass);
void vrs_raw_spin_unlock(raw_spinlock_t *lock);
unsigned long vrs_raw_spin_lock_irqsave(raw_spinlock_t *lock);
void vrs_raw_spin_unlock_irqrestore(raw_spinlock_t *lock, unsigned long flags);
void vrs_raw_spin_also_acquired(raw_spinlock_t *lock, int subclass);
void vrs_raw_spin_also_released(raw_spinlock_t *lock);
void __percpu *vrs_alloc_percpu(size_t size, size_t align);
bool vrs_cpu_possible(unsigned int cpu);
int vrs_cpu_dead_register(const char *name, int (*dead)(unsigned int cpu));
void vrs_cpu_dead_unregister(int state);

/* mm.c */
int vrs_mmap_write_lock_killable(struct mm_struct *mm);
void vrs_mmap_write_lock(struct mm_struct *mm);
void vrs_mmap_write_unlock(struct mm_struct *mm);
unsigned long vrs_untagged_addr_remote(struct mm_struct *mm, unsigned long addr);
struct page *vrs_pfn_to_page(unsigned long pfn);
bool vrs_pfn_has_page(unsigned long pfn);
bool vrs_pfn_is_reserved(unsigned long pfn);
size_t vrs_page_run(struct page **pages, size_t count, unsigned long *pfn, bool *reserved);
unsigned long vrs_memlock_limit(const struct task_struct *task);
void vrs_task_comm(struct task_struct *task, char *buf, size_t len);
void vrs_cond_resched(void);
bool vrs_fatal_signal_pending(void);
bool vrs_access_ok(const void __user *addr, unsigned long size);

/* iommu.c */
void vrs_iotlb_gather_init(struct iommu_iotlb_gather *gather);
void vrs_iotlb_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather);
bool vrs_enforce_cache_coherency(struct iommu_domain *domain);
int vrs_set_msi_window(struct iommu_domain *domain, phys_addr_t base);

/* vfio.c */
bool vrs_vfio_device_wants_unmap(const struct vfio_device *device);
void vrs_vfio_device_list_init(struct list_head *devices);
void vrs_vfio_device_list_add(struct list_head *devices, struct vfio_device *device);
void vrs_vfio_device_list_del(struct vfio_device *device);
bool vrs_vfio_may_log_refusal(void);
void vrs_vfio_devices_unmap(struct list_head *devices, u64 iova, u64 length);

#endif
