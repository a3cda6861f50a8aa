/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What vfio_type1_rs adds to <linux/vfio.h>; see dirty-log.rst.
 */
#ifndef VFIO_DIRTY_LOG_H
#define VFIO_DIRTY_LOG_H

#include <linux/vfio.h>

/*
 * VFIO_CHECK_EXTENSION: dirty pages can be reported without being cleared, and
 * cleared one by one.
 */
#ifndef VFIO_DIRTY_LOG_MANUAL_CLEAR
#define VFIO_DIRTY_LOG_MANUAL_CLEAR	11
#endif

/*
 * Flags of struct vfio_iommu_type1_dirty_bitmap. With both a struct
 * vfio_iommu_type1_dirty_bitmap_get follows in its data.
 *
 * GET_BITMAP_NOCLEAR reports the dirty pages of a range, which stay dirty.
 *
 * CLEAR_BITMAP reads the bitmap and takes the pages as clean whose bits are
 * set. It is to be called before these pages are copied.
 */
#ifndef VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP_NOCLEAR
#define VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP_NOCLEAR	(1 << 3)
#define VFIO_IOMMU_DIRTY_PAGES_FLAG_CLEAR_BITMAP	(1 << 4)
#endif

#endif /* VFIO_DIRTY_LOG_H */
