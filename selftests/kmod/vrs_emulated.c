// SPDX-License-Identifier: GPL-2.0
/*
 * Test only: VFIO devices without hardware and without an IOMMU, which pin
 * and copy user memory when user space says so.
 *
 * In the kernel tree only drivers of mediated devices call vfio_pin_pages()
 * and vfio_dma_rw(), and those need an Intel GPU or a mainframe.
 */
#include <linux/device/faux.h>
#include <linux/highmem.h>
#include <linux/iommu.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/vfio.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "vrs_emulated.h"

#define VRS_MAX_DEVICES	8
#define VRS_MAX_RW	SZ_1M

static unsigned int devices = 2;
module_param(devices, uint, 0444);
MODULE_PARM_DESC(devices, "Number of devices, besides one without dma_unmap (2).");

/* One page, pinned as often as user space asked. */
struct vrs_pin {
	struct page *page;
	u64 users;
};

struct vrs_device {
	struct vfio_device vdev;
	/*
	 * Protects all below. Held across vfio_pin_pages() and taken in
	 * dma_unmap, so that no page is pinned which dma_unmap cannot see:
	 * a container driver must call dma_unmap without the locks that
	 * pinning needs. Drivers in the kernel tree count on that, too.
	 */
	struct mutex lock;
	struct xarray pins;
	u64 users;
	u64 pages;
	u64 unmaps;
	u64 refused;
	bool stubborn;
};

static struct vrs_device *to_vrs(struct vfio_device *vdev)
{
	return container_of(vdev, struct vrs_device, vdev);
}

static dma_addr_t vrs_iova(unsigned long index)
{
	return (dma_addr_t)index << PAGE_SHIFT;
}

/* Notes that a page was pinned once more. */
static int vrs_note(struct vrs_device *vrs, unsigned long index,
		    struct page *page)
{
	struct vrs_pin *pin = xa_load(&vrs->pins, index);
	int ret;

	if (!pin) {
		pin = kzalloc_obj(*pin);
		if (!pin)
			return -ENOMEM;
		pin->page = page;
		ret = xa_err(xa_store(&vrs->pins, index, pin, GFP_KERNEL));
		if (ret) {
			kfree(pin);
			return ret;
		}
		vrs->pages++;
	}
	pin->users++;
	vrs->users++;
	return 0;
}

/* Unpins pages that were noted before, once each. */
static void vrs_unpin(struct vrs_device *vrs, unsigned long first, int npages)
{
	unsigned long index;

	vfio_unpin_pages(&vrs->vdev, vrs_iova(first), npages);
	for (index = first; index < first + npages; index++) {
		struct vrs_pin *pin = xa_load(&vrs->pins, index);

		vrs->users--;
		if (--pin->users)
			continue;
		xa_erase(&vrs->pins, index);
		kfree(pin);
		vrs->pages--;
	}
}

/* Unpins whatever is pinned in a range, as often as it is. */
static void vrs_unpin_all(struct vrs_device *vrs, unsigned long first,
			  unsigned long last)
{
	unsigned long index;
	struct vrs_pin *pin;

	xa_for_each_range(&vrs->pins, index, pin, first, last) {
		u64 users = pin->users;

		while (users--)
			vrs_unpin(vrs, index, 1);
	}
}

static long vrs_ioctl_pin(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_emulated_pin request;
	struct page **pages;
	unsigned long first;
	int i, ret, err = 0;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (offset_in_page(request.iova))
		return -EINVAL;
	first = request.iova >> PAGE_SHIFT;

	/* VFIO refuses a larger number before it looks at the array. */
	pages = kcalloc(VFIO_PIN_PAGES_MAX_ENTRIES, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;

	mutex_lock(&vrs->lock);
	ret = vfio_pin_pages(&vrs->vdev, request.iova, request.npages,
			     request.prot, pages);
	for (i = 0; i < ret; i++) {
		err = vrs_note(vrs, first + i, pages[i]);
		if (!err)
			continue;
		vfio_unpin_pages(&vrs->vdev, vrs_iova(first + i), ret - i);
		if (i)
			vrs_unpin(vrs, first, i);
		ret = err;
	}
	mutex_unlock(&vrs->lock);

	request.stale = 0;
	for (i = 0; ret < 0 && !err && i < VFIO_PIN_PAGES_MAX_ENTRIES; i++)
		request.stale += !!pages[i];
	kfree(pages);
	if (copy_to_user(arg, &request, sizeof(request)))
		return -EFAULT;
	return ret;
}

static long vrs_ioctl_unpin(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_emulated_pin request;
	unsigned long first;
	u32 i;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (offset_in_page(request.iova) || !request.npages ||
	    request.npages > VFIO_PIN_PAGES_MAX_ENTRIES)
		return -EINVAL;
	first = request.iova >> PAGE_SHIFT;

	guard(mutex)(&vrs->lock);
	for (i = 0; i < request.npages; i++)
		if (!xa_load(&vrs->pins, first + i))
			return -ENOENT;
	vrs_unpin(vrs, first, request.npages);
	return 0;
}

struct vrs_rw_work {
	struct work_struct work;
	struct vrs_device *vrs;
	const struct vrs_emulated_rw *request;
	void *data;
	int ret;
};

static void vrs_rw(struct work_struct *work)
{
	struct vrs_rw_work *rw = container_of(work, struct vrs_rw_work, work);

	rw->ret = vfio_dma_rw(&rw->vrs->vdev, rw->request->iova, rw->data,
			      rw->request->len,
			      rw->request->flags & VRS_EMULATED_RW_WRITE);
}

static long vrs_ioctl_rw(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_emulated_rw request;
	struct vrs_rw_work rw = { .vrs = vrs, .request = &request };
	void *data __free(kvfree) = NULL;
	void __user *user;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.len > VRS_MAX_RW)
		return -E2BIG;
	user = u64_to_user_ptr(request.data);
	data = kvzalloc(max(request.len, 1U), GFP_KERNEL);
	if (!data)
		return -ENOMEM;
	if (request.flags & VRS_EMULATED_RW_WRITE &&
	    copy_from_user(data, user, request.len))
		return -EFAULT;

	rw.data = data;
	INIT_WORK_ONSTACK(&rw.work, vrs_rw);
	if (request.flags & VRS_EMULATED_RW_KTHREAD) {
		queue_work(system_dfl_wq, &rw.work);
		flush_work(&rw.work);
	} else {
		vrs_rw(&rw.work);
	}
	destroy_work_on_stack(&rw.work);

	if (!rw.ret && !(request.flags & VRS_EMULATED_RW_WRITE) &&
	    copy_to_user(user, data, request.len))
		return -EFAULT;
	return rw.ret;
}

static long vrs_ioctl_fill(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_emulated_fill request;
	struct vrs_pin *pin;
	void *at;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;

	guard(mutex)(&vrs->lock);
	pin = xa_load(&vrs->pins, request.iova >> PAGE_SHIFT);
	if (!pin)
		return -ENOENT;
	at = kmap_local_page(pin->page);
	memset(at, request.byte, PAGE_SIZE);
	kunmap_local(at);
	return 0;
}

static long vrs_ioctl_counters(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_emulated_counters counters;

	scoped_guard(mutex, &vrs->lock) {
		counters.unmaps = vrs->unmaps;
		counters.refused = vrs->refused;
		counters.pages = vrs->pages;
		counters.users = vrs->users;
	}
	return copy_to_user(arg, &counters, sizeof(counters)) ? -EFAULT : 0;
}

static long vrs_ioctl(struct vfio_device *vdev, unsigned int cmd,
		      unsigned long arg)
{
	struct vrs_device *vrs = to_vrs(vdev);
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case VRS_EMULATED_PIN:
		return vrs_ioctl_pin(vrs, user);
	case VRS_EMULATED_UNPIN:
		return vrs_ioctl_unpin(vrs, user);
	case VRS_EMULATED_RW:
		return vrs_ioctl_rw(vrs, user);
	case VRS_EMULATED_FILL:
		return vrs_ioctl_fill(vrs, user);
	case VRS_EMULATED_COUNTERS:
		return vrs_ioctl_counters(vrs, user);
	case VRS_EMULATED_STUBBORN:
		if (arg > 1)
			return -EINVAL;
		scoped_guard(mutex, &vrs->lock)
			vrs->stubborn = arg;
		return 0;
	default:
		return -ENOTTY;
	}
}

static void vrs_dma_unmap(struct vfio_device *vdev, u64 iova, u64 length)
{
	struct vrs_device *vrs = to_vrs(vdev);

	guard(mutex)(&vrs->lock);
	vrs->unmaps++;
	if (vrs->stubborn)
		vrs->refused++;
	else
		vrs_unpin_all(vrs, iova >> PAGE_SHIFT,
			      (iova + length - 1) >> PAGE_SHIFT);
}

static int vrs_init(struct vfio_device *vdev)
{
	struct vrs_device *vrs = to_vrs(vdev);

	mutex_init(&vrs->lock);
	xa_init(&vrs->pins);
	return 0;
}

static void vrs_release(struct vfio_device *vdev)
{
	struct vrs_device *vrs = to_vrs(vdev);

	xa_destroy(&vrs->pins);
	mutex_destroy(&vrs->lock);
}

static void vrs_close(struct vfio_device *vdev)
{
	struct vrs_device *vrs = to_vrs(vdev);

	guard(mutex)(&vrs->lock);
	vrs->stubborn = false;
	vrs_unpin_all(vrs, 0, ULONG_MAX);
}

#define VRS_OPS						\
	.name = KBUILD_MODNAME,				\
	.init = vrs_init,				\
	.release = vrs_release,				\
	.bind_iommufd = vfio_iommufd_emulated_bind,	\
	.unbind_iommufd = vfio_iommufd_emulated_unbind,	\
	.attach_ioas = vfio_iommufd_emulated_attach_ioas, \
	.detach_ioas = vfio_iommufd_emulated_detach_ioas, \
	.close_device = vrs_close,			\
	.ioctl = vrs_ioctl

static const struct vfio_device_ops vrs_ops = {
	VRS_OPS,
	.dma_unmap = vrs_dma_unmap,
};

/* A device that does not want to hear of unmapping, and so may not pin. */
static const struct vfio_device_ops vrs_deaf_ops = {
	VRS_OPS,
};

static int vrs_add(struct faux_device *faux, const struct vfio_device_ops *ops)
{
	struct vrs_device *vrs;
	int ret;

	vrs = vfio_alloc_device(vrs_device, vdev, &faux->dev, ops);
	if (IS_ERR(vrs))
		return PTR_ERR(vrs);
	ret = vfio_register_emulated_iommu_dev(&vrs->vdev);
	if (ret) {
		vfio_put_device(&vrs->vdev);
		return ret;
	}
	faux_device_set_drvdata(faux, vrs);
	return 0;
}

static int vrs_probe(struct faux_device *faux)
{
	return vrs_add(faux, &vrs_ops);
}

static int vrs_probe_deaf(struct faux_device *faux)
{
	return vrs_add(faux, &vrs_deaf_ops);
}

static void vrs_remove(struct faux_device *faux)
{
	struct vrs_device *vrs = faux_device_get_drvdata(faux);

	vfio_unregister_group_dev(&vrs->vdev);
	vfio_put_device(&vrs->vdev);
}

static const struct faux_device_ops vrs_faux_ops = {
	.probe = vrs_probe,
	.remove = vrs_remove,
};

static const struct faux_device_ops vrs_deaf_faux_ops = {
	.probe = vrs_probe_deaf,
	.remove = vrs_remove,
};

static struct faux_device *vrs_faux[VRS_MAX_DEVICES + 1];

static void vrs_destroy_all(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(vrs_faux); i++)
		if (vrs_faux[i])
			faux_device_destroy(vrs_faux[i]);
}

static int __init vrs_module_init(void)
{
	unsigned int i;

	if (devices > VRS_MAX_DEVICES)
		return -EINVAL;

	for (i = 0; i <= devices; i++) {
		const struct faux_device_ops *ops = &vrs_faux_ops;
		char name[32] = KBUILD_MODNAME ".deaf";

		if (i < devices)
			snprintf(name, sizeof(name), KBUILD_MODNAME ".%u", i);
		else
			ops = &vrs_deaf_faux_ops;
		vrs_faux[i] = faux_device_create(name, NULL, ops);
		if (!vrs_faux[i]) {
			vrs_destroy_all();
			return -ENODEV;
		}
	}
	return 0;
}

static void __exit vrs_module_exit(void)
{
	vrs_destroy_all();
}

module_init(vrs_module_init);
module_exit(vrs_module_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test only: VFIO devices that pin user memory on request");
MODULE_INFO(test, "Y");
