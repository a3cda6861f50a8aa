// SPDX-License-Identifier: GPL-2.0
/*
 * Test only: what cannot be seen of stage 2 from outside, and moments that are
 * too short to be met.
 *
 * The kernel's own dump of a stage-2 page table has no physical addresses and
 * no memory types. This reads the descriptors, by itself rather than by KVM's
 * walker: with mmu_lock held for writing nobody changes them.
 */
#include <linux/completion.h>
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/memblock.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include <asm/kvm_emulate.h>
#include <asm/kvm_pgtable.h>

#include "vrs_stage2.h"
#include "vrs_vcpu.h"

enum vrs_where { VRS_NOWHERE, VRS_UNMAP, VRS_FAULT };

struct vrs_stage2 {
	struct mutex lock;
	/* Where the next thread that comes by is held. */
	atomic_t where;
	struct completion held;
	struct completion released;
	bool late;
	struct vrs_stage2_range range;
	struct mmu_notifier notifier;
	bool notified;
};

static bool vrs_next(struct vrs_stage2 *vrs, enum vrs_where where)
{
	return atomic_cmpxchg(&vrs->where, where, VRS_NOWHERE) == where;
}

static void vrs_hold(struct vrs_stage2 *vrs)
{
	complete(&vrs->held);
	if (!wait_for_completion_timeout(&vrs->released, VRS_STAGE2_SECONDS * HZ))
		WRITE_ONCE(vrs->late, true);
}

static u64 vrs_walk(struct kvm_pgtable *pgt, u64 ipa, s32 *level)
{
	/* Tables of the first level that are one behind the other are one. */
	u64 *table = (__force u64 *)pgt->pgd;
	u64 index = ipa >> kvm_granule_shift(pgt->start_level);

	for (*level = pgt->start_level;; ++*level) {
		u64 descriptor = READ_ONCE(table[index]);
		bool is_table = (descriptor & 3) == 3 && *level < KVM_PGTABLE_LAST_LEVEL;

		if (!is_table)
			return descriptor;
		table = phys_to_virt(kvm_pte_to_phys(descriptor));
		index = (ipa >> kvm_granule_shift(*level + 1)) & (PTRS_PER_PTE - 1);
	}
}

static int vrs_leaf(struct vrs_stage2_leaf *arg)
{
	struct file *file = vrs_vcpu_file(arg->vcpu);
	struct kvm_pgtable *pgt;
	struct kvm_vcpu *vcpu;
	int ret = 0;

	if (IS_ERR(file))
		return PTR_ERR(file);

	vcpu = file->private_data;
	write_lock(&vcpu->kvm->mmu_lock);
	pgt = vcpu->kvm->arch.mmu.pgt;
	if (!pgt || arg->ipa >> pgt->ia_bits) {
		ret = -ERANGE;
	} else {
		arg->descriptor = vrs_walk(pgt, arg->ipa, &arg->level);
		arg->hcr_el2 = *vcpu_hcr(vcpu);
		arg->vtcr_el2 = vcpu->kvm->arch.mmu.vtcr;
	}
	write_unlock(&vcpu->kvm->mmu_lock);
	fput(file);
	return ret;
}

static int vrs_invalidate(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct vrs_stage2 *vrs = container_of(notifier, struct vrs_stage2, notifier);

	if (mmu_notifier_range_blockable(range) && range->start <= vrs->range.last &&
	    vrs->range.first < range->end && vrs_next(vrs, VRS_UNMAP))
		vrs_hold(vrs);
	return 0;
}

static const struct mmu_notifier_ops vrs_notifier_ops = {
	.invalidate_range_start	= vrs_invalidate,
};

static long vrs_hold_unmap(struct vrs_stage2 *vrs, const struct vrs_stage2_range *range)
{
	int ret;

	if (vrs->notified)
		return -EBUSY;
	vrs->range = *range;
	vrs->notifier.ops = &vrs_notifier_ops;
	/* Who registers last is called first, so that KVM goes before. */
	ret = mmu_notifier_register(&vrs->notifier, current->mm);
	if (ret)
		return ret;
	vrs->notified = true;
	atomic_set(&vrs->where, VRS_UNMAP);
	return 0;
}

static long vrs_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct vrs_stage2 *vrs = file->private_data;
	void __user *user = (void __user *)arg;
	struct vrs_stage2_range range;
	struct vrs_stage2_leaf leaf;
	long ret;

	switch (cmd) {
	case VRS_STAGE2_LEAF:
		if (copy_from_user(&leaf, user, sizeof(leaf)))
			return -EFAULT;
		ret = vrs_leaf(&leaf);
		if (!ret && copy_to_user(user, &leaf, sizeof(leaf)))
			return -EFAULT;
		return ret;
	case VRS_STAGE2_HOLD_UNMAP:
		if (copy_from_user(&range, user, sizeof(range)))
			return -EFAULT;
		scoped_guard(mutex, &vrs->lock)
			return vrs_hold_unmap(vrs, &range);
	case VRS_STAGE2_HOLD_FAULT:
		atomic_set(&vrs->where, VRS_FAULT);
		return 0;
	case VRS_STAGE2_WAIT:
		ret = wait_for_completion_killable_timeout(&vrs->held, VRS_STAGE2_SECONDS * HZ);
		return ret > 0 ? 0 : ret ?: -ETIMEDOUT;
	case VRS_STAGE2_RELEASE:
		complete(&vrs->released);
		return READ_ONCE(vrs->late) ? -ETIMEDOUT : 0;
	default:
		return -ENOTTY;
	}
}

static vm_fault_t vrs_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long pfn = vmf->pgoff;

	if (fault_flag_allow_retry_first(vmf->flags) &&
	    !(vmf->flags & FAULT_FLAG_RETRY_NOWAIT) &&
	    vrs_next(vma->vm_file->private_data, VRS_FAULT)) {
		struct file *file = get_file(vma->vm_file);

		release_fault_lock(vmf);
		vrs_hold(file->private_data);
		fput(file);
		return VM_FAULT_RETRY;
	}
	if (pfn_is_map_memory(pfn))
		return VM_FAULT_SIGBUS;
	return vmf_insert_pfn(vma, vmf->address, pfn);
}

static vm_fault_t vrs_mkwrite(struct vm_fault *vmf)
{
	return 0;
}

static const struct vm_operations_struct vrs_vm_ops = {
	.fault		= vrs_fault,
	.pfn_mkwrite	= vrs_mkwrite,
};

static int vrs_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	if (file->f_flags & O_SYNC)
		vma->vm_page_prot = pgprot_device(vma->vm_page_prot);
	vma->vm_ops = &vrs_vm_ops;
	return 0;
}

static int vrs_open(struct inode *inode, struct file *file)
{
	struct vrs_stage2 *vrs = kzalloc(sizeof(*vrs), GFP_KERNEL);

	if (!vrs)
		return -ENOMEM;
	mutex_init(&vrs->lock);
	init_completion(&vrs->held);
	init_completion(&vrs->released);
	file->private_data = vrs;
	return 0;
}

static int vrs_flush(struct file *file, fl_owner_t id)
{
	struct vrs_stage2 *vrs = file->private_data;

	/* Whoever is held has the file, or the address space, in use. */
	complete(&vrs->released);
	return 0;
}

static int vrs_release(struct inode *inode, struct file *file)
{
	struct vrs_stage2 *vrs = file->private_data;

	if (vrs->notified)
		mmu_notifier_unregister(&vrs->notifier, vrs->notifier.mm);
	kfree(vrs);
	return 0;
}

static const struct file_operations vrs_fops = {
	.owner		= THIS_MODULE,
	.open		= vrs_open,
	.flush		= vrs_flush,
	.release	= vrs_release,
	.mmap		= vrs_mmap,
	.unlocked_ioctl	= vrs_ioctl,
};

static struct miscdevice vrs_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "vrs_stage2",
	.mode	= 0600,
	.fops	= &vrs_fops,
};
module_misc_device(vrs_misc);

MODULE_DESCRIPTION("Test only: stage-2 descriptors, and threads held at the wrong moment");
MODULE_LICENSE("GPL");
